//! The table of the methods.

use std::sync::LazyLock;
use std::time::Duration;

use super::contract::{LONG, READ, WRITE};
use super::*;
use crate::params::Ranges;

/// The deadline of a method that no row of the table names (milliseconds): that of a read.
pub const UNKNOWN_METHOD_TIMEOUT_MS: u64 = READ;

/// The row of `name` or of one of its other names.
#[must_use]
pub fn method_info(name: &str) -> Option<&'static MethodInfo> {
    METHODS
        .iter()
        .find(|row| row.name == name || row.other_names.contains(&name))
}

/// How long a call of `name` with this many bytes of parameters may take when the caller says nothing: see
/// [`MethodInfo::default_timeout`].
#[must_use]
pub fn default_timeout(name: &str, params_bytes: usize) -> Duration {
    match method_info(name) {
        Some(row) => row.default_timeout(params_bytes),
        None => Duration::from_millis(UNKNOWN_METHOD_TIMEOUT_MS),
    }
}

/// Parameter names of the filters, in positional order.
macro_rules! with_filters {
    ([$($before:literal),*] filters [$($after:literal),*]) => {
        &[$($before,)* "type", "agent", "session_id", "since", "until", "metadata" $(, $after)*]
    };
    ([$($name:literal),*]) => { &[$($name),*] };
}

macro_rules! methods {
    ($(
        $type:ident $constant:ident = $name:literal $(also [$($other:literal),*])?,
        $params:ty => $result:ty, $access:ident $timeout:ident $($flag:ident)*, $positional:tt $(filters $after:tt)?,
        $summary:literal;
    )*) => {
        /// The names of the methods on the wire.
        pub mod method {
            $(#[doc = $summary] pub const $constant: &str = $name;)*
        }
        $(
            #[doc = concat!("`", $name, "`: ", $summary)]
            #[derive(Clone, Copy, Debug)]
            pub struct $type;
            impl Method for $type {
                const NAME: &'static str = $name;
                const OTHER_NAMES: &'static [&'static str] = &[$($($other),*)?];
                type Params = $params;
                type Result = $result;
                const POSITIONAL: &'static [&'static str] = with_filters!($positional $(filters $after)?);
                const ALIASES: &'static [(&'static str, &'static str)] = &[("knowledge_type", "type")];
                const DEFAULT_TIMEOUT_MS: u64 = $timeout;
                const WRITES: bool = methods!(@writes $access);
                const SCOPE: ProjectScope = methods!(@scope $($flag)*);
                const OPERATOR: bool = methods!(@operator $($flag)*);
                const FILTERED: bool = methods!(@filtered $(filters $after)?);
                const FREE_ID: bool = methods!(@free_id $($flag)*);
                const SUMMARY: &'static str = $summary;

                fn ranges() -> &'static Ranges {
                    static RANGES: LazyLock<Ranges> = LazyLock::new(Ranges::of::<$type>);
                    &RANGES
                }
            }
        )*
        /// Every method of the contract, in its order. The server decides which of them it serves.
        pub static METHODS: &[MethodInfo] = &[$(MethodInfo::of::<$type>()),*];
    };
    (@writes read) => { false };
    (@writes write) => { true };
    (@scope) => { ProjectScope::One };
    (@scope any_project $($rest:ident)*) => { ProjectScope::OneOrEvery };
    (@scope all_projects $($rest:ident)*) => { ProjectScope::AllUnlessNamed };
    (@scope no_project $($rest:ident)*) => { ProjectScope::Nothing };
    (@scope $other:ident $($rest:ident)*) => { methods!(@scope $($rest)*) };
    (@operator) => { false };
    (@operator operator $($rest:ident)*) => { true };
    (@operator $other:ident $($rest:ident)*) => { methods!(@operator $($rest)*) };
    (@free_id) => { false };
    (@free_id free_id $($rest:ident)*) => { true };
    (@free_id $other:ident $($rest:ident)*) => { methods!(@free_id $($rest)*) };
    (@filtered) => { false };
    (@filtered filters $after:tt) => { true };
}

// The table. Columns: type and constant = name, parameters => result, access and default deadline with flags,
// positional order (`filters` stands for type, agent, session_id, since, until, metadata), summary.
// Flags: what `project_id` means (`any_project`, `all_projects`, `no_project`; else one project, or `default`),
// `operator` (served when everything is in use), `free_id` (`id` does not name an item that exists).
#[rustfmt::skip]
methods! {
    Store KNOWLEDGE_STORE = "knowledge.store", StoreParams => StoreResult, write WRITE free_id,
        ["text", "type", "agent", "session_id", "metadata", "id", "idempotency_key", "on_duplicate"],
        "Stores one item and answers when it is durable.";
    StoreBatch KNOWLEDGE_STORE_BATCH = "knowledge.store_batch", StoreBatchParams => StoreBatchResult, write LONG,
        ["items"], "Stores up to 1,000 items; good items are stored even if others fail.";
    Search KNOWLEDGE_SEARCH = "knowledge.search", SearchParams => SearchResult, read READ,
        ["query", "limit", "offset", "mode", "threshold"] filters ["budget_tokens", "projects", "as_of", "explain", "cursor"],
        "Finds items by meaning, by keyword or both, best first.";
    List KNOWLEDGE_LIST = "knowledge.list" also ["knowledge.query"], ListParams => ListResult, read READ,
        [] filters ["order", "limit", "cursor"], "Lists items by filter, page by page.";
    Get KNOWLEDGE_GET = "knowledge.get", GetParams => GetResult, read READ,
        ["id", "ids"], "Fetches one item, or several with the ids that are missing.";
    Update KNOWLEDGE_UPDATE = "knowledge.update", UpdateParams => UpdateResult, write WRITE,
        ["id", "text", "type", "agent", "session_id", "metadata"], "Changes an item; the old revision stays in its history.";
    History KNOWLEDGE_HISTORY = "knowledge.history", HistoryParams => HistoryResult, read READ,
        ["id"], "Lists the revisions of an item, newest first.";
    Delete KNOWLEDGE_DELETE = "knowledge.delete", DeleteParams => DeleteResult, write WRITE,
        ["id", "ids"] filters ["dry_run"], "Deletes items by id or filter, undoable until they expire.";
    Undelete KNOWLEDGE_UNDELETE = "knowledge.undelete", UndeleteParams => UndeleteResult, write WRITE,
        ["undo_token", "ids"], "Restores deleted items.";
    Purge KNOWLEDGE_PURGE = "knowledge.purge", PurgeParams => PurgeResult, write LONG,
        ["id", "ids", "secrets", "confirm"], "Removes items from every revision and version on disk.";
    Cleanup KNOWLEDGE_CLEANUP = "knowledge.cleanup", CleanupParams => CleanupResult, write LONG,
        ["older_than_days"] filters ["dry_run"], "Deletes items older than a number of days; a dry run unless `dry_run` is false.";
    Similar KNOWLEDGE_SIMILAR = "knowledge.similar", SimilarParams => SearchResult, read READ,
        ["id", "limit"], "Finds items that resemble a given one.";
    Stats KNOWLEDGE_STATS = "knowledge.stats", StatsParams => StatsResult, read READ all_projects,
        [], "Counts items of one project, or of all.";
    Projects KNOWLEDGE_PROJECTS = "knowledge.projects", ProjectsParams => ProjectsResult, read READ all_projects,
        [], "Lists the projects.";
    PreCompaction KNOWLEDGE_PRE_COMPACTION = "knowledge.pre_compaction", PreCompactionParams => PreCompactionResult, write LONG,
        ["conversation", "session_id"], "Stores what is worth keeping of a conversation before it is compacted.";
    PostCompaction KNOWLEDGE_POST_COMPACTION = "knowledge.post_compaction", PostCompactionParams => PostCompactionResult, read READ,
        ["current_task", "limit", "budget_tokens"], "Returns what matters for a task after a compaction.";
    Subscribe KNOWLEDGE_SUBSCRIBE = "knowledge.subscribe", SubscribeParams => SubscribeResult, read READ any_project,
        ["cursor", "with_text"], "Starts the change feed on this connection.";
    Unsubscribe KNOWLEDGE_UNSUBSCRIBE = "knowledge.unsubscribe", UnsubscribeParams => bool, read READ no_project,
        ["subscription"], "Ends a subscription of this connection.";
    Embed EMBEDDING_EMBED = "embedding.embed", EmbedParams => EmbedResult, read WRITE no_project,
        ["texts"], "Embeds texts with the daemon's model.";
    SqlQuery SQL_QUERY = "sql.query", SqlParams => SqlResult, read READ,
        ["sql", "limit"], "Runs one read-only SELECT over the project's live items.";
    Health ADMIN_HEALTH = "admin.health", HealthParams => HealthResult, read READ no_project operator,
        ["deep"], "Reports whether the daemon works; `deep` also tests a write, a search and a delete.";
    Status ADMIN_STATUS = "admin.status", StatusParams => StatusResult, read READ all_projects operator,
        [], "Describes the daemon, its parts and its projects.";
    Metrics ADMIN_METRICS = "admin.metrics", MetricsParams => MetricsResult, read READ all_projects operator,
        [], "Returns the metrics as Prometheus text.";
    Optimize ADMIN_OPTIMIZE = "admin.optimize", OptimizeParams => OptimizeResult, write LONG all_projects,
        [], "Runs the maintenance that is due.";
    Reembed ADMIN_REEMBED = "admin.reembed", ReembedParams => ReembedResult, write LONG all_projects,
        ["model"], "Embeds every item again with another model, online.";
    Backup ADMIN_BACKUP = "admin.backup", BackupParams => BackupResult, read LONG all_projects,
        ["path"], "Writes a consistent copy to an absolute path.";
    Restore ADMIN_RESTORE = "admin.restore", RestoreParams => RestoreResult, write LONG all_projects,
        ["path"], "Replaces projects with those of a backup and sets the old ones aside.";
    Verify ADMIN_VERIFY = "admin.verify", VerifyParams => VerifyResult, read LONG all_projects,
        [], "Checks the stored data and reports what is wrong.";
    Import ADMIN_IMPORT = "admin.import", ImportParams => ImportResult, write LONG,
        ["path", "dry_run"], "Imports items from JSON Lines or from Markdown files.";
    Export ADMIN_EXPORT = "admin.export", ExportParams => ExportResult, read LONG,
        ["path", "format"], "Exports items to an absolute path.";
    Shutdown ADMIN_SHUTDOWN = "admin.shutdown", ShutdownParams => ShutdownResult, read WRITE no_project operator,
        [], "Finishes what was accepted and stops the daemon.";
    Discover RPC_DISCOVER = "rpc.discover", DiscoverParams => serde_json::Value, read READ no_project,
        [], "Describes every method as an OpenRPC document.";
    Version RPC_VERSION = "rpc.version", VersionParams => VersionResult, read READ no_project operator,
        [], "Reports the version, the capabilities and the limits.";
    Cancel RPC_CANCEL = "rpc.cancel", CancelParams => CancelResult, read READ no_project operator free_id,
        ["id"], "Cancels a request in flight on this connection.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::TIMEOUT_MS_MAX;
    use schemars::SchemaGenerator;
    use std::collections::BTreeSet;

    #[test]
    fn the_positional_lists_are_the_properties_of_the_schemas() {
        for row in METHODS {
            let mut generator = SchemaGenerator::default();
            let reference = (row.params_schema)(&mut generator);
            let definitions = generator.take_definitions(false);
            let schema = match reference.get("$ref").and_then(|value| value.as_str()) {
                Some(path) => definitions[path.rsplit('/').next().unwrap()].clone(),
                None => reference.to_value(),
            };
            let properties: BTreeSet<String> = schema["properties"]
                .as_object()
                .map(|map| map.keys().cloned().collect())
                .unwrap_or_default();
            let listed: BTreeSet<String> = row.positional.iter().map(ToString::to_string).collect();
            assert_eq!(properties, listed, "{}", row.name);
            assert_eq!(listed.len(), row.positional.len(), "{} lists a name twice", row.name);
        }
    }

    #[test]
    fn names_are_unique_and_constants_agree() {
        let mut names = BTreeSet::new();
        for row in METHODS {
            assert!(names.insert(row.name), "{} twice", row.name);
            for other in row.other_names {
                assert!(names.insert(other), "{other} twice");
            }
            assert!((1..=600_000).contains(&row.default_timeout_ms));
        }
        assert_eq!(method::KNOWLEDGE_STORE, Store::NAME);
        assert_eq!(method_info("knowledge.query").unwrap().name, method::KNOWLEDGE_LIST);
        assert_eq!(default_timeout("knowledge.search", 0), Duration::from_secs(10));
        assert_eq!(default_timeout("knowledge.store", 0), Duration::from_secs(60));
        assert_eq!(default_timeout("no.such", 0), Duration::from_secs(10));
    }

    #[test]
    fn the_default_deadline_of_a_write_follows_its_size() {
        for name in ["knowledge.store", "knowledge.update", "embedding.embed"] {
            assert_eq!(default_timeout(name, 1_000_000), Duration::from_secs(560), "{name}");
            assert_eq!(default_timeout(name, usize::MAX), Duration::from_millis(TIMEOUT_MS_MAX));
        }
        assert_eq!(default_timeout("knowledge.search", 16_384), Duration::from_secs(10));
        assert_eq!(
            default_timeout("knowledge.store_batch", 16 << 20),
            Duration::from_secs(600)
        );
    }
}
