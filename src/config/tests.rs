use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::*;

fn load(home: &Path, flags: Overrides, environment: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let home_variable = [(OsString::from("CCO_HOME"), home.as_os_str().to_owned())];
    let environment = environment
        .iter()
        .map(|(name, value)| (OsString::from(*name), OsString::from(*value)))
        .chain(home_variable);
    Config::load_from(flags, environment, None)
}

fn home_with(text: &str) -> tempfile::TempDir {
    let home = tempfile::tempdir().expect("tempdir");
    std::fs::write(home.path().join("ccod.toml"), text).expect("written");
    home
}

fn set(assignments: &[&str]) -> Overrides {
    Overrides {
        set: assignments.iter().map(|assignment| (*assignment).to_owned()).collect(),
        ..Overrides::default()
    }
}

#[test]
fn the_defaults_are_valid() {
    Config::at("/home/someone/.cco").validate().expect("valid");
    let home = tempfile::tempdir().expect("tempdir");
    let loaded = load(home.path(), Overrides::default(), &[]).expect("loads");
    assert_eq!(loaded.config, Config::at(home.path()));
    assert_eq!(loaded.config.socket_path(), home.path().join("run/ccod.sock"));
    assert_eq!(loaded.origins["readers.queue"], Origin::Default);
}

#[test]
fn flags_beat_the_environment_which_beats_the_file_which_beats_the_defaults() {
    let home = home_with(
        "# limits of this machine\n[readers]\nworkers = 2\nqueue = 20\n\n[writer]\nqueue_ops = 21\n[embedder]\nwarm = true\n",
    );
    let loaded = load(
        home.path(),
        set(&["readers.workers=4"]),
        &[("CCO_READERS__WORKERS", "3"), ("CCO_READERS__QUEUE", "30")],
    )
    .expect("loads");
    let config = loaded.config;
    assert_eq!(config.readers.workers, 4);
    assert_eq!(config.readers.queue, 30);
    assert_eq!(config.writer.queue_ops, 21);
    assert!(config.embedder.warm);
    assert_eq!(config.writer.max_group_rows, 1_000);

    let origin = |key: &str| loaded.origins[key].to_string();
    assert_eq!(origin("readers.workers"), "flag --set");
    assert_eq!(origin("readers.queue"), "environment variable CCO_READERS__QUEUE");
    let file = home.path().join("ccod.toml");
    assert_eq!(origin("writer.queue_ops"), format!("{}:7", file.display()));
    assert_eq!(origin("writer.max_group_rows"), "default");
    assert_eq!(origin("home"), "environment variable CCO_HOME");
}

#[test]
fn short_variables_stand_for_nested_keys() {
    let home = tempfile::tempdir().expect("tempdir");
    let loaded = load(
        home.path(),
        Overrides::default(),
        &[
            ("CCO_DURABILITY", "fast"),
            ("CCO_LOG", "debug"),
            ("CCO_LOG_FORMAT", "json"),
            ("CCO_SOCKET", "/tmp/s.sock"),
        ],
    )
    .expect("loads");
    assert_eq!(loaded.config.store.durability, Durability::Fast);
    assert_eq!(loaded.config.log.level, "debug");
    assert_eq!(loaded.config.log.format, LogFormat::Json);
    assert_eq!(loaded.config.socket_path(), Path::new("/tmp/s.sock"));
    assert_eq!(
        loaded.origins["store.durability"],
        Origin::Environment {
            variable: "CCO_DURABILITY".to_owned()
        }
    );
}

#[test]
fn empty_and_foreign_variables_are_left_alone() {
    let home = tempfile::tempdir().expect("tempdir");
    let loaded = load(
        home.path(),
        Overrides::default(),
        &[
            ("CCO_SOCKET", ""),
            ("CCO_PROJECT", "x"),
            ("CCO_UI__THEME", "dark"),
            ("PATH", "/bin"),
        ],
    )
    .expect("loads");
    assert_eq!(loaded.config, Config::at(home.path()));
}

#[test]
fn a_misspelled_variable_of_ours_is_refused() {
    let home = tempfile::tempdir().expect("tempdir");
    let error = load(home.path(), Overrides::default(), &[("CCO_READERS__WORKER", "3")]).expect_err("refused");
    assert_eq!(
        error.to_string(),
        "environment variable CCO_READERS__WORKER: unknown key `readers.worker`; did you mean `readers.workers`?"
    );
    for (variable, key) in [
        ("CCO_LIMITZ__X", "limitz.x"),
        ("CCO_LIMIT__MAX_CONNECTIONS", "limit.max_connections"),
        ("CCO_READER__WORKERS", "reader.workers"),
    ] {
        let error = load(home.path(), Overrides::default(), &[(variable, "3")]).expect_err(variable);
        assert!(error.to_string().contains(&format!("unknown key `{key}`")), "{error}");
    }
}

#[test]
fn an_unknown_key_is_refused_with_its_line_and_the_nearest_name() {
    for (text, line, key, nearest) in [
        (
            "[readers]\nqueue = 3\nworkes = 3\n",
            3,
            "readers.workes",
            Some("readers.workers"),
        ),
        (
            "retention_days = 3\n",
            1,
            "retention_days",
            Some("store.retention_days"),
        ),
        ("\n[limit]\nmax_connections = 3\n", 2, "limit", None),
        ("log.level = \"debug\"\nlog.colour = 1\n", 2, "log.colour", None),
        ("x9 = 1\n", 1, "x9", None),
    ] {
        let home = home_with(text);
        let error = load(home.path(), Overrides::default(), &[]).expect_err(text);
        let message = error.to_string();
        let file = home.path().join("ccod.toml");
        assert!(
            message.starts_with(&format!("{}:{line}: unknown key `{key}`; ", file.display())),
            "{message}"
        );
        if let Some(nearest) = nearest {
            assert!(message.ends_with(&format!("did you mean `{nearest}`?")), "{message}");
        }
    }
}

#[test]
fn a_value_of_the_wrong_type_names_its_place() {
    let home = home_with("[readers]\nqueue = \"many\"\n");
    let error = load(home.path(), Overrides::default(), &[])
        .expect_err("refused")
        .to_string();
    assert!(error.starts_with("readers.queue ("), "{error}");
    assert!(error.contains("ccod.toml:2)"), "{error}");

    let home = tempfile::tempdir().expect("tempdir");
    let error = load(home.path(), Overrides::default(), &[("CCO_DURABILITY", "maybe")]).expect_err("refused");
    let error = error.to_string();
    assert!(error.contains("CCO_DURABILITY") && error.contains("maybe"), "{error}");
    assert!(error.contains("full") && error.contains("fast"), "{error}");

    let error = load(home.path(), set(&["readers.queue=-1"]), &[])
        .expect_err("refused")
        .to_string();
    assert!(error.starts_with("readers.queue (flag --set)"), "{error}");
}

#[test]
fn limits_of_items_are_set_in_one_place() {
    let home = tempfile::tempdir().expect("tempdir");
    let loaded = load(home.path(), set(&["items.max_text_bytes=5000"]), &[]).expect("loads");
    assert_eq!(loaded.config.limits.max_text_bytes, 5_000);
    let error = load(home.path(), set(&["limits.max_text_bytes=5000"]), &[])
        .expect_err("refused")
        .to_string();
    assert!(error.contains("did you mean `items.max_text_bytes`?"), "{error}");
}

#[test]
fn values_that_contradict_each_other_are_refused() {
    let home = tempfile::tempdir().expect("tempdir");
    for (assignment, key) in [
        ("readers.queue=0", "readers.queue"),
        ("embedder.batch_tokens=100", "embedder.batch_tokens"),
        ("embedder.bulk_queue_tokens=400", "embedder.bulk_queue_tokens"),
        ("embedder.bulk_quantum_tokens=4096", "embedder.bulk_quantum_tokens"),
        ("writer.queue_bytes=4194304", "writer.max_group_bytes"),
        ("items.max_text_bytes=999999999", "items.max_text_bytes"),
        ("limits.max_depth=1000", "limits.max_depth"),
        ("shutdown.grace_ms=1000", "limits.shutdown_grace_ms"),
        ("supervision.backoff_ms=6000", "supervision.backoff_ms"),
        ("limits.max_connections=0", "limits.max_connections"),
        ("store.retention_days=36501", "store.retention_days"),
    ] {
        let error = load(home.path(), set(&[assignment]), &[]).expect_err(assignment);
        assert!(
            error.to_string().starts_with(&format!("{key} (")),
            "{assignment}: {error}"
        );
    }
}

#[test]
fn a_socket_path_that_no_kernel_takes_is_refused() {
    let home = tempfile::tempdir().expect("tempdir");
    let flags = Overrides {
        socket: Some(PathBuf::from(format!("/{}", "s".repeat(120)))),
        ..Overrides::default()
    };
    let error = load(home.path(), flags, &[]).expect_err("refused").to_string();
    assert!(error.starts_with("socket (flag --socket)"), "{error}");
    assert!(error.contains("121 bytes") && error.contains("CCO_SOCKET"), "{error}");
}

#[test]
fn the_file_cannot_name_the_home_it_lies_in() {
    let home = home_with("home = \"/elsewhere\"\n");
    let error = load(home.path(), Overrides::default(), &[])
        .expect_err("refused")
        .to_string();
    assert!(error.contains("CCO_HOME"), "{error}");
}

#[test]
fn a_file_that_is_not_toml_is_refused_with_its_line() {
    let home = home_with("[readers]\nqueue = \n");
    let error = load(home.path(), Overrides::default(), &[])
        .expect_err("refused")
        .to_string();
    assert!(error.contains("ccod.toml:2: "), "{error}");
    let home = home_with("readers = 3\n");
    let error = load(home.path(), Overrides::default(), &[])
        .expect_err("refused")
        .to_string();
    assert!(error.contains("write [readers]"), "{error}");
}

#[test]
fn homes_are_made_absolute() {
    let user = tempfile::tempdir().expect("tempdir");
    let default = Config::load_from(Overrides::default(), [], Some(user.path().to_owned())).expect("loads");
    assert_eq!(default.config.home, user.path().join(".cco"));
    let tilde = Overrides {
        home: Some(PathBuf::from("~/other")),
        ..Overrides::default()
    };
    let tilde = Config::load_from(tilde, [], Some(user.path().to_owned())).expect("loads");
    assert_eq!(tilde.config.home, user.path().join("other"));
    let relative = Overrides {
        home: Some(PathBuf::from("here")),
        ..Overrides::default()
    };
    let relative = Config::load_from(relative, [], None).expect("loads");
    assert!(relative.config.home.is_absolute());
    let error = Config::load_from(Overrides::default(), [], None)
        .expect_err("refused")
        .to_string();
    assert!(error.contains("--home"), "{error}");
}

#[test]
fn a_relative_socket_is_relative_to_where_it_was_written() {
    let home = home_with("socket = \"run/other.sock\"\n");
    let loaded = load(home.path(), Overrides::default(), &[]).expect("loads");
    assert_eq!(loaded.config.socket_path(), home.path().join("run/other.sock"));
    let flags = Overrides {
        socket: Some(PathBuf::from("other.sock")),
        ..Overrides::default()
    };
    let loaded = load(home.path(), flags, &[]).expect("loads");
    let here = std::env::current_dir().expect("current directory");
    assert_eq!(loaded.config.socket_path(), here.join("other.sock"));
    assert_eq!(loaded.config.log_path(), home.path().join("run/ccod.log"));
}

#[test]
fn so_is_the_log() {
    let home = home_with("[log]\nfile = \"logs/ccod.log\"\n");
    let loaded = load(home.path(), Overrides::default(), &[]).expect("loads");
    assert_eq!(loaded.config.log_path(), home.path().join("logs/ccod.log"));
    let flags = Overrides {
        set: vec!["log.file=12".to_owned()],
        ..Overrides::default()
    };
    let loaded = load(home.path(), flags, &[]).expect("loads");
    assert_eq!(
        loaded.config.log_path(),
        std::env::current_dir().expect("here").join("12")
    );
}

/// The tables of `docs/configuration.md` are made from the structs. `UPDATE_DOCS=1` writes them.
#[test]
fn the_documentation_has_every_option_as_it_is() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let text = std::fs::read_to_string(&path).expect("read");
    let defaults: std::collections::BTreeMap<_, _> = Config::default().values().into_iter().collect();
    let options = options();
    let mut shown = 0;
    let mut made = String::new();
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once("<!-- options: ") {
        let (sections, after) = after.split_once(" -->\n").expect("a marker");
        let (_, after) = after.split_once("<!-- end -->").expect("an end");
        made.push_str(&format!(
            "{before}<!-- options: {sections} -->\n| key | default | range | |\n|---|---|---|---|\n"
        ));
        for option in &options {
            let section = option.key.split('.').next().unwrap_or_default();
            if !sections.split(' ').any(|wanted| wanted == section) {
                continue;
            }
            shown += 1;
            let default = match (option.key.as_str(), &defaults[&option.key]) {
                ("home", _) => "`~/.cco`".to_owned(),
                ("socket", _) => "`run/ccod.sock` in the home".to_owned(),
                (_, serde_json::Value::Null) => "none".to_owned(),
                (_, serde_json::Value::String(text)) if !text.is_empty() => format!("`{text}`"),
                (_, value) => format!("`{value}`"),
            };
            // Zero and more is what an unsigned number takes anyway.
            let range = match (option.minimum, option.maximum) {
                (Some(0.0) | None, None) => String::new(),
                _ => option.range(),
            };
            let about = option.about.replace('|', "\\|");
            made.push_str(&format!("| `{}` | {default} | {range} | {about} |\n", option.key));
        }
        made.push_str("<!-- end -->");
        rest = after;
    }
    made.push_str(rest);
    assert_eq!(shown, options.len(), "each option stands in one section");
    assert!(options.iter().all(|option| !option.about.is_empty()));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, made).expect("written");
    } else {
        assert!(
            made == text,
            "docs/configuration.md is not what the code says; run the tests with UPDATE_DOCS=1"
        );
    }
}
