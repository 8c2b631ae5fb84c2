//! The record of which project belongs to which repository is damaged.

use crate::daemon::process::said;
use crate::support::Daemon;

/// Two repositories of one name, and a file of claims that a crash has emptied: neither reads the other's knowledge.
#[test]
fn damaged_claims_never_give_a_repository_the_project_of_another() {
    let daemon = Daemon::start();
    let root = daemon.home.path().join("src");
    for place in ["one/api", "two/api"] {
        let git = root.join(place).join(".git");
        for directory in ["objects", "refs"] {
            std::fs::create_dir_all(git.join(directory)).unwrap();
        }
        std::fs::write(git.join("HEAD"), "ref: refs/heads/main\n").unwrap();
    }
    let run = |place: &str, arguments: &[&str]| {
        let mut command = daemon.home.command(arguments);
        command.current_dir(root.join(place)).output().unwrap()
    };
    assert!(run("one/api", &["store", "of the first"]).status.success());
    assert!(run("two/api", &["store", "of the second"]).status.success());
    let file = daemon.home.path().join("projects.json");
    let copy = daemon.home.path().join("projects.json.bak");
    for damage in [&b""[..], &[0; 50], b"{\"claims\": {\"api"] {
        std::fs::write(&file, damage).unwrap();
        let second = run("two/api", &["list"]);
        let listed = String::from_utf8_lossy(&second.stdout).into_owned();
        assert!(
            listed.contains("of the second") && !listed.contains("of the first"),
            "{listed}"
        );

        std::fs::write(&file, damage).unwrap();
        let sound = std::fs::read(&copy).unwrap();
        std::fs::write(&copy, damage).unwrap();
        for arguments in [&["list"][..], &["store", "lost?"]] {
            let refused = run("two/api", arguments);
            assert_eq!(refused.status.code(), Some(78), "{}", said(&refused));
            assert!(said(&refused).contains("--project"), "{}", said(&refused));
        }
        assert!(run("two/api", &["list", "--project", "api"]).status.success());
        std::fs::write(&copy, sound).unwrap();
    }
}
