//! Who may reach the socket, as the configuration says.

use ccod_protocol::endpoint::{self, BindOptions, EndpointError};
use ccod_protocol::peer::PeerPolicy;
use thiserror::Error;

use crate::config::AccessConfig;

/// Why the configuration of the access cannot be used.
#[derive(Debug, Error)]
pub enum AccessError {
    /// A part of `access.allowed_uids` is not a number.
    #[error("access.allowed_uids: `{0}` is not a user id")]
    UserId(String),
    /// There is no such group, or it cannot be looked up.
    #[error(transparent)]
    Group(#[from] EndpointError),
}

/// How the socket is to be bound, and who may connect to it.
///
/// # Errors
/// When a user or the group of the configuration does not exist.
pub fn bind_options(access: &AccessConfig) -> Result<BindOptions, AccessError> {
    let uids = access.uids().map_err(|part| AccessError::UserId(part.to_owned()))?;
    let socket_group = match access.socket_group.as_str() {
        "" => None,
        name => Some(endpoint::group_id(name)?),
    };
    Ok(BindOptions {
        socket_group,
        policy: PeerPolicy::own_user_and(uids),
    })
}
