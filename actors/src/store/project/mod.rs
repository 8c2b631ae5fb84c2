//! One project: its table, which the writer holds, and the view of it that readers see.
//!
//! | file | what is in it |
//! |---|---|
//! | `handle` | the project itself, as the rest of the store knows it |
//! | `settings` | what never changes |
//! | `published`, `listeners` | the view that readers see, the older ones that they still read, and who waits for the next |
//! | `opening`, `opening_record` | opening or creating the table; what that has done and found |
//! | `disk_size` | what it takes on disk |
//! | `closing` | closing it when nobody uses it |
//! | `damaged`, `damage_ledger` | looking for damage and saving what can be read; what is known of it |
//!
//! # The order of the locks
//!
//! A lock may be taken while those before it in this list are held, never the other way round:
//!
//! 1. `Store::transfers`: shared by what reads one version for long, alone by a restore;
//! 2. `DamageLedger::examined`: while a version is searched for damage because a read has failed;
//! 3. `Project::table`: for the whole of a commit, or of an opening. A restore holds those of several projects,
//!    everybody else that of one, and there is one restore at a time;
//! 4. `Store::backup_instant`: shared to publish a view, alone while a backup takes the views of all projects;
//! 5. `Store::projects`: to look a project up, or to add or remove one;
//! 6. `Published::view`, and every lock that is not in this list: to copy or replace a value. No other lock is taken
//!    while one of them is held.
//!
//! No lock from 4 on is held across an await. `DamageLedger::clear`, which is called with 3 held, only tries 2 and does
//! without it if it is not free.

mod closing;
mod damage_ledger;
mod damaged;
mod disk_size;
mod handle;
mod listeners;
mod opening;
mod opening_record;
mod published;
mod settings;

pub use closing::Counts;
use closing::LastUse;
use damage_ledger::DamageLedger;
pub(super) use damage_ledger::REEXAMINE_AFTER;
use handle::PUT_BACK;
pub use handle::Project;
pub(super) use handle::{HALF_RESTORED, Losses};
pub use listeners::Listener;
pub(super) use listeners::Listeners;
use opening_record::OpeningRecord;
pub(super) use published::Published;
pub(super) use settings::ProjectSettings;
