//! Many small projects, searched in turn.

use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::daemon::{Daemon, Program};
use crate::homes::project_name;
use crate::size::Queries;
use crate::table::{Table, spread};

/// Queries whose vectors are known.
const QUERIES: usize = 64;

/// Searches each project, twice. Memory and open files before, after each round, and a while later.
pub(crate) fn measure(program: &Program, home: &Path, projects: usize, idle: Duration, table: &mut Table) {
    let daemon = Daemon::start(program, home);
    let mut client = daemon.client();
    client.call("admin.health", &json!({}));
    table.row("started", format!("| {} | {}", daemon.memory(), daemon.open_files()));
    let queries = Queries::new(51).take(QUERIES);
    client.embed(&queries);
    table.row(
        "with the model",
        format!("| {} | {}", daemon.memory(), daemon.open_files()),
    );
    for round in ["first round", "second round", "third round"] {
        let mut times = Vec::new();
        for number in 0..projects {
            let query = &queries[number % QUERIES];
            let search = json!({"query": query, "limit": 10, "project_id": project_name(number)});
            let (found, took) = client.timed("knowledge.search", &search);
            assert!(found["count"].as_u64() > Some(0), "{found}");
            times.push(took);
            if (number + 1) % 100 == 0 {
                eprintln!(
                    "{round}, {} projects: {} (MiB resident, anonymous, of files, most)",
                    number + 1,
                    daemon.memory()
                );
            }
        }
        table.row(
            format!("{round} of {projects}"),
            format!("{} | {} | {}", spread(&times), daemon.memory(), daemon.open_files()),
        );
    }
    let status = client.call("admin.status", &json!({}));
    eprintln!("caches: {}", status["caches"]);
    drop(client);
    std::thread::sleep(idle);
    let title = format!("{} s after the last call", idle.as_secs());
    table.row(title, format!("| {} | {}", daemon.memory(), daemon.open_files()));
    daemon.stop();
}
