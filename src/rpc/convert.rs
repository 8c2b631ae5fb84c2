//! The wire's types to the domain's and back.

use std::collections::HashSet;

use ccod_actors::error::KnowledgeError;
use ccod_actors::reader::ProjectStats;
use ccod_protocol::api;
use ccod_protocol::error::ErrorKind;

use super::wire_error;

/// `state` of a project that cannot be read.
pub(crate) const UNREADABLE: &str = "unreadable";

/// `state` of a project of which a part cannot be read.
const DAMAGED: &str = "damaged";

/// `state` of a project that can be read, if it needs a migration or a part of it is damaged.
pub(crate) fn project_state(project: &ProjectStats) -> Option<String> {
    let damaged = project.degraded.is_some().then_some(DAMAGED);
    let state = project.needs_migration.as_ref().map(|_| "needs_migration").or(damaged);
    state.map(str::to_owned)
}

/// The part of a project that cannot be read and so is not counted, if there is one. It was logged when it was found.
pub(crate) fn damage_error(project: &ProjectStats) -> Option<api::ProjectError> {
    let reason = project.degraded.as_ref()?;
    Some(api::ProjectError {
        project_id: project.project.clone(),
        code: ErrorKind::InternalError.code(),
        message: reason.clone(),
    })
}

/// Why the answer to a call over several projects lacks this one.
pub(crate) fn project_error(project: impl Into<String>, error: KnowledgeError) -> api::ProjectError {
    let error = wire_error(error);
    api::ProjectError {
        project_id: project.into(),
        code: error.code,
        message: error.message,
    }
}

/// Commit numbers grow from 1; 0 stands for a project without any.
pub(crate) fn version(sequence: i64) -> u64 {
    u64::try_from(sequence).unwrap_or(0)
}

/// The ids of a request, each once and in their order. How many there may be is checked when they are decoded.
pub(crate) fn ids(ids: &[String]) -> Vec<String> {
    let mut seen = HashSet::with_capacity(ids.len());
    ids.iter().filter(|id| seen.insert(id.as_str())).cloned().collect()
}

/// A model's identity, `name@hash` inside the daemon.
pub(crate) fn model(identity: &str, dimensions: usize) -> api::ModelIdentity {
    let (name, hash) = identity.split_once('@').unwrap_or((identity, ""));
    api::ModelIdentity {
        name: name.to_owned(),
        hash: hash.to_owned(),
        dimensions: u32::try_from(dimensions).unwrap_or(u32::MAX),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_id_that_is_named_twice_counts_once() {
        let ids: Vec<String> = ["b", "a", "b", "c", "a"].map(str::to_owned).to_vec();
        assert_eq!(super::ids(&ids), ["b", "a", "c"]);
    }
}
