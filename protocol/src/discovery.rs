//! Where the socket is.

use std::path::{Path, PathBuf};

/// The variable that names the socket.
pub const SOCKET_VARIABLE: &str = "CCO_SOCKET";
/// The socket's place in the home directory.
pub const SOCKET_IN_HOME: &str = "run/ccod.sock";
/// The lock's place in the home directory.
pub const LOCK_IN_HOME: &str = "run/ccod.lock";

/// The socket's path: `--socket`, else `$CCO_SOCKET`, else the configuration, else `$CCO_HOME/run/ccod.sock`.
/// An empty value counts as absent.
#[must_use]
pub fn socket_path(
    flag: Option<&Path>,
    environment: Option<&Path>,
    configuration: Option<&Path>,
    home: &Path,
) -> PathBuf {
    [flag, environment, configuration]
        .into_iter()
        .flatten()
        .find(|path| !path.as_os_str().is_empty())
        .map_or_else(|| home.join(SOCKET_IN_HOME), Path::to_owned)
}

/// The lock that belongs to a socket: beside it, with the extension `lock`.
#[must_use]
pub fn lock_path(socket: &Path) -> PathBuf {
    socket.with_extension("lock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_the_contract() {
        let [flag, environment, configuration, home] = ["/flag", "/env", "/conf", "/home/u/.cco"].map(Path::new);
        let empty = Some(Path::new(""));
        assert_eq!(
            socket_path(Some(flag), Some(environment), Some(configuration), home),
            flag
        );
        assert_eq!(
            socket_path(None, Some(environment), Some(configuration), home),
            environment
        );
        assert_eq!(socket_path(empty, empty, Some(configuration), home), configuration);
        assert_eq!(socket_path(None, empty, None, home), home.join("run/ccod.sock"));
        assert_eq!(lock_path(&home.join(SOCKET_IN_HOME)), home.join(LOCK_IN_HOME));
    }
}
