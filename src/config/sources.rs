//! Where values come from: flags, the environment, the file; and how they are merged.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use figment::providers::Serialized;
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::Serialize;
use thiserror::Error;

use super::Config;
use super::check::Problem;
use super::schema::Schema;

/// Prefix of the environment variables that are read.
const ENVIRONMENT_PREFIX: &str = "CCO_";

/// Variables that stand for a nested key, because people set them by hand.
const ENVIRONMENT_ALIASES: [(&str, &str); 3] = [
    ("CCO_DURABILITY", "store.durability"),
    ("CCO_LOG", "log.level"),
    ("CCO_LOG_FORMAT", "log.format"),
];

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "source", rename_all = "snake_case")]
pub enum Origin {
    /// The default.
    Default,
    /// The configuration file.
    File {
        /// Path of the file.
        path: PathBuf,
        /// Line of the value, from 1.
        line: usize,
    },
    /// A variable of the environment.
    Environment {
        /// Its name.
        variable: String,
    },
    /// A flag of the command line.
    Flag {
        /// Its name, such as `--home`.
        flag: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => formatter.write_str("default"),
            Self::File { path, line } => write!(formatter, "{}:{line}", path.display()),
            Self::Environment { variable } => write!(formatter, "environment variable {variable}"),
            Self::Flag { flag } => write!(formatter, "flag {flag}"),
        }
    }
}

/// What the flags of the command line set. They beat every other source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--home`.
    pub home: Option<PathBuf>,
    /// `--socket`.
    pub socket: Option<PathBuf>,
    /// `--durability`.
    pub durability: Option<String>,
    /// `--log`.
    pub log_level: Option<String>,
    /// `--log-format`.
    pub log_format: Option<String>,
    /// `--set KEY=VALUE`, for every other key, in the order given.
    pub set: Vec<String>,
}

/// A configuration and the origin of each of its values.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration, checked.
    pub config: Config,
    /// Origin of each value by its dotted key.
    pub origins: BTreeMap<String, Origin>,
    /// Path of the configuration file, whether or not it exists.
    pub file: PathBuf,
}

/// Why a configuration was refused. The message says which value, where it was set, and what is accepted.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// There is no usable home directory.
    #[error("the home directory cannot be used: {reason}; set --home or CCO_HOME to an absolute directory")]
    Home {
        /// Why.
        reason: String,
    },
    /// The file exists and cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{path}:{line}: {message}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line of the error, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A key that does not exist.
    #[error("{origin}: unknown key `{key}`{hint}")]
    UnknownKey {
        /// Where it was set.
        origin: Origin,
        /// The key as written.
        key: String,
        /// The nearest key, as the end of a sentence; empty if no key is near.
        hint: String,
    },
    /// A value of the wrong type or out of range, or two that contradict each other.
    #[error("{key} ({origin}): {message}")]
    Invalid {
        /// The key.
        key: String,
        /// Where it was set.
        origin: Origin,
        /// What is accepted.
        message: String,
    },
}

impl Config {
    /// Merges all sources of this process.
    pub fn load(flags: Overrides) -> Result<Loaded, ConfigError> {
        Self::load_from(flags, std::env::vars_os(), user_home())
    }

    /// Merges `flags`, the variables in `environment` and the file in the home; `user_home` is where `~` points.
    /// Takes its surroundings as arguments so that tests need not change those of the process.
    pub fn load_from(
        flags: Overrides,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        user_home: Option<PathBuf>,
    ) -> Result<Loaded, ConfigError> {
        let schema = Schema::new();
        let environment = environment_settings(&schema, environment)?;
        let flags = flag_settings(&schema, flags)?;

        let home_setting = flags
            .iter()
            .rev()
            .chain(environment.iter())
            .find(|setting| setting.key == "home");
        let (home, home_origin) = match home_setting {
            Some(setting) => (PathBuf::from(&setting.text), setting.origin.clone()),
            None => {
                let user_home = user_home.clone().ok_or_else(|| ConfigError::Home {
                    reason: "this user has no home directory".to_owned(),
                })?;
                (user_home.join(".cco"), Origin::Default)
            }
        };
        let home = absolute(&home, user_home.as_deref())?;
        let file = home.join("ccod.toml");
        let file_settings = file_settings(&schema, &file)?;

        let mut figment = Figment::from(Serialized::defaults(Self::at(home.clone())));
        let mut origins: BTreeMap<String, Origin> =
            schema.keys().map(|key| (key.to_owned(), Origin::Default)).collect();
        // From the weakest to the strongest: each merge overwrites.
        for setting in file_settings.into_iter().chain(environment).chain(flags) {
            if setting.key != "home" {
                origins.insert(setting.key.clone(), setting.origin.clone());
                figment = figment.merge(setting);
            }
        }
        origins.insert("home".to_owned(), home_origin);

        let mut config: Self = figment.extract().map_err(|error| extraction_error(&error, &origins))?;
        config.share_item_limits();
        for (key, path) in [("socket", &mut config.socket), ("log.file", &mut config.log.file)] {
            let Some(path) = path else { continue };
            // A relative path is relative to where it was written: in the file, to the file's directory.
            let written = match origins.get(key) {
                Some(Origin::File { .. }) if !path.starts_with("~") => config.home.join(&*path),
                _ => path.clone(),
            };
            *path = absolute(&written, user_home.as_deref())?;
        }
        if let Err(Problem { key, message }) = config.check() {
            let origin = origins.get(&key).cloned().unwrap_or(Origin::Default);
            return Err(ConfigError::Invalid { key, origin, message });
        }
        Ok(Loaded { config, origins, file })
    }

    /// Checks that the values are possible and fit together. [`Config::load`] has done it; a configuration
    /// built by hand should call it.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.check().map_err(|Problem { key, message }| ConfigError::Invalid {
            key,
            origin: Origin::Default,
            message,
        })
    }
}

/// One value from one place. Each is a provider of its own, so that figment knows the exact place of each.
#[derive(Clone, Debug)]
struct Setting {
    key: String,
    /// The value as text, for the keys that are paths.
    text: String,
    value: Value,
    origin: Origin,
}

impl Provider for Setting {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.to_string())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let nested = figment::util::nest(&self.key, self.value.clone());
        let dict = nested
            .into_dict()
            .ok_or_else(|| figment::Error::from(format!("`{}` is not a key", self.key)))?;
        Ok(Profile::Default.collect(dict))
    }
}

/// A text from the environment or a flag, read as the type that the key has.
fn setting_from_text(schema: &Schema, key: &str, text: String, origin: Origin) -> Setting {
    let value = match schema.defaults.get(key) {
        // A number or bool that does not parse stays text, so that the error quotes it. A key without a default
        // is a number as well, except for the paths.
        Some(serde_json::Value::Number(_) | serde_json::Value::Null) if !["socket", "log.file"].contains(&key) => text
            .replace('_', "")
            .parse::<u64>()
            .map_or_else(|_| Value::from(text.clone()), Value::from),
        Some(serde_json::Value::Bool(_)) => text
            .parse::<bool>()
            .map_or_else(|_| Value::from(text.clone()), Value::from),
        _ => Value::from(text.clone()),
    };
    Setting {
        key: key.to_owned(),
        text,
        value,
        origin,
    }
}

/// The variables that are ours. Others of the same prefix belong to other parts of CCO and are left alone,
/// unless they name one of our sections.
fn environment_settings(
    schema: &Schema,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Vec<Setting>, ConfigError> {
    let mut settings = Vec::new();
    for (variable, text) in environment {
        let Some(variable) = variable.to_str() else {
            continue;
        };
        let Some(name) = variable.strip_prefix(ENVIRONMENT_PREFIX) else {
            continue;
        };
        let alias = ENVIRONMENT_ALIASES
            .iter()
            .find(|(alias, _)| *alias == variable)
            .map(|(_, key)| (*key).to_owned());
        let key = alias.unwrap_or_else(|| name.to_lowercase().replace("__", "."));
        let origin = Origin::Environment {
            variable: variable.to_owned(),
        };
        if !schema.contains(&key) {
            let section = key.split('.').next().unwrap_or_default();
            if name.contains("__") && schema.resembles_section(section) {
                return Err(ConfigError::UnknownKey {
                    origin,
                    hint: schema.hint(&key),
                    key,
                });
            }
            continue;
        }
        // An empty variable counts as unset, as it does for most tools.
        if text.is_empty() {
            continue;
        }
        let text = text.into_string().map_err(|_| ConfigError::Invalid {
            key: key.clone(),
            origin: origin.clone(),
            message: "must be valid UTF-8".to_owned(),
        })?;
        settings.push(setting_from_text(schema, &key, text, origin));
    }
    // A nested name beats its short form whatever the order of the environment, so that the result is stable.
    settings.sort_by_key(|setting| match &setting.origin {
        Origin::Environment { variable } => (variable.contains("__"), variable.clone()),
        _ => (false, String::new()),
    });
    Ok(settings)
}

fn flag_settings(schema: &Schema, flags: Overrides) -> Result<Vec<Setting>, ConfigError> {
    let mut settings = Vec::new();
    for assignment in flags.set {
        let origin = Origin::Flag {
            flag: "--set".to_owned(),
        };
        let Some((key, text)) = assignment.split_once('=') else {
            return Err(ConfigError::Invalid {
                key: assignment,
                origin,
                message: "takes the form KEY=VALUE, such as limits.max_connections=64".to_owned(),
            });
        };
        if !schema.contains(key) {
            return Err(ConfigError::UnknownKey {
                origin,
                key: key.to_owned(),
                hint: schema.hint(key),
            });
        }
        settings.push(setting_from_text(schema, key, text.to_owned(), origin));
    }
    let path_text = |path: Option<PathBuf>, key: &str, flag: &str| match path {
        None => Ok(None),
        Some(path) => path
            .into_os_string()
            .into_string()
            .map(Some)
            .map_err(|_| ConfigError::Invalid {
                key: key.to_owned(),
                origin: Origin::Flag { flag: flag.to_owned() },
                message: "must be valid UTF-8".to_owned(),
            }),
    };
    let named = [
        ("home", "--home", path_text(flags.home, "home", "--home")?),
        ("socket", "--socket", path_text(flags.socket, "socket", "--socket")?),
        ("store.durability", "--durability", flags.durability),
        ("log.level", "--log", flags.log_level),
        ("log.format", "--log-format", flags.log_format),
    ];
    for (key, flag, text) in named {
        if let Some(text) = text {
            let origin = Origin::Flag { flag: flag.to_owned() };
            settings.push(setting_from_text(schema, key, text, origin));
        }
    }
    Ok(settings)
}

/// Whether the file does not exist, also because its parent is not a directory: the code that needs the home reports
/// that.
fn is_absent(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory)
}

/// The values of the file, each with its line; an absent file has none.
fn file_settings(schema: &Schema, path: &Path) -> Result<Vec<Setting>, ConfigError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        Err(source) => {
            return Err(ConfigError::Unreadable {
                path: path.to_owned(),
                source,
            });
        }
    };
    // toml_edit rather than figment's own provider, because only it keeps the position of each key.
    let document = toml_edit::ImDocument::parse(text.as_str()).map_err(|error| ConfigError::Syntax {
        path: path.to_owned(),
        line: error.span().map_or(1, |span| line_at(&text, span.start)),
        message: error.message().replace('\n', ", "),
    })?;
    let mut settings = Vec::new();
    collect_table(schema, path, &text, "", document.as_table(), &mut settings)?;
    Ok(settings)
}

fn collect_table(
    schema: &Schema,
    path: &Path,
    text: &str,
    prefix: &str,
    table: &dyn toml_edit::TableLike,
    settings: &mut Vec<Setting>,
) -> Result<(), ConfigError> {
    for (name, item) in table.iter() {
        let key = if prefix.is_empty() {
            name.to_owned()
        } else {
            format!("{prefix}.{name}")
        };
        let position = table
            .key(name)
            .and_then(toml_edit::Key::span)
            .or_else(|| item.span())
            .map_or(0, |span| span.start);
        let origin = Origin::File {
            path: path.to_owned(),
            line: line_at(text, position),
        };
        if key == "home" {
            return Err(ConfigError::Invalid {
                key,
                origin,
                message: "cannot be set in the file, which is found through it; set --home or CCO_HOME".to_owned(),
            });
        }
        if let Some(section) = item.as_table_like()
            && schema.is_section(&key)
        {
            collect_table(schema, path, text, &key, section, settings)?;
            continue;
        }
        if !schema.contains(&key) {
            if schema.is_section(&key) {
                return Err(ConfigError::Invalid {
                    message: format!("is a section; write [{key}] and its keys below it"),
                    key,
                    origin,
                });
            }
            return Err(ConfigError::UnknownKey {
                origin,
                hint: schema.hint(&key),
                key,
            });
        }
        let Some(value) = item.as_value().and_then(scalar) else {
            return Err(ConfigError::Invalid {
                key,
                origin,
                message: "takes a single value: a number, a text in quotes, true or false".to_owned(),
            });
        };
        let value_text = value.as_str().unwrap_or_default().to_owned();
        settings.push(Setting {
            key,
            text: value_text,
            value,
            origin,
        });
    }
    Ok(())
}

/// The value as figment's, if a key can have such a value.
fn scalar(value: &toml_edit::Value) -> Option<Value> {
    match value {
        toml_edit::Value::String(text) => Some(Value::from(text.value().clone())),
        toml_edit::Value::Integer(number) => Some(Value::from(*number.value())),
        toml_edit::Value::Float(number) => Some(Value::from(*number.value())),
        toml_edit::Value::Boolean(flag) => Some(Value::from(*flag.value())),
        toml_edit::Value::Datetime(_) | toml_edit::Value::Array(_) | toml_edit::Value::InlineTable(_) => None,
    }
}

fn line_at(text: &str, position: usize) -> usize {
    let before = text.as_bytes().get(..position).unwrap_or(text.as_bytes());
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

fn extraction_error(error: &figment::Error, origins: &BTreeMap<String, Origin>) -> ConfigError {
    let key = error.path.join(".");
    ConfigError::Invalid {
        origin: origins.get(&key).cloned().unwrap_or(Origin::Default),
        key,
        message: error.kind.to_string(),
    }
}

/// `path` made absolute against the current directory, with a leading `~` resolved.
fn absolute(path: &Path, user_home: Option<&Path>) -> Result<PathBuf, ConfigError> {
    let expanded = match (path.strip_prefix("~"), user_home) {
        (Ok(rest), Some(user_home)) => user_home.join(rest),
        _ => path.to_owned(),
    };
    std::path::absolute(&expanded).map_err(|error| ConfigError::Home {
        reason: format!("{}: {error}", expanded.display()),
    })
}

/// `$HOME`, else the home in the user database (a service may run without the variable).
fn user_home() -> Option<PathBuf> {
    if let Some(home) = std::env::var_os("HOME").filter(|home| !home.is_empty()) {
        return Some(PathBuf::from(home));
    }
    nix::unistd::User::from_uid(nix::unistd::Uid::effective())
        .ok()
        .flatten()
        .map(|user| user.dir)
}
