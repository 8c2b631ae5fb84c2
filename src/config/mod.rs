//! The configuration: every limit of the daemon with its default and the reason for it.
//!
//! Values come from flags, the environment (`CCO_...`), `$CCO_HOME/ccod.toml` and the defaults, in this order of
//! precedence. [`Config::load`] merges them (`sources`), refuses keys that it does not know (a misspelled limit must
//! not silently be no limit; `schema`), checks that the values fit together (`check`), and remembers for each where it
//! came from. The command line loads it too, so nothing here touches the disk beyond reading that one file.

mod check;
mod options;
mod schema;
mod sections;
mod settings;
mod sources;

#[cfg(test)]
mod tests;

pub use ccod_protocol::api::Durability;
pub use ccod_protocol::limits::Limits;
pub use options::{ConfigOption, options};
pub use sections::{
    AccessConfig, EmbedderConfig, ItemsConfig, LogConfig, LogFormat, Precision, ReadersConfig, SearchConfig,
    ShutdownConfig, StoreConfig, SupervisionConfig, WriterConfig,
};
pub use settings::Config;
pub use sources::{ConfigError, Loaded, Origin, Overrides};
