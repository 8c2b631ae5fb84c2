//! What sizes cost, asked of a real daemon through its socket: searches, gets, lists and opening at up to a million
//! passages, many clients, many requests at once, many projects, and the memory that each takes.
//!
//! `cargo bench --bench scale [-- --rows 10000,100000,1000000 --only search,open]`, and with `--profile dist` for the
//! shipped one; `-- --help` for the rest. Prints its setting and tables in Markdown; nothing is asserted but that
//! answers are answers. The homes that are measured are made without embedding and kept: a row takes more than 2 KB of
//! disk.

#![recursion_limit = "256"]

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use serde_json::json;

#[path = "../tests/support/mod.rs"]
#[allow(dead_code)]
mod support;

#[path = "common/texts.rs"]
mod texts;

#[path = "scale/crowd.rs"]
mod crowd;
#[path = "scale/daemon.rs"]
mod daemon;
#[path = "scale/homes.rs"]
mod homes;
#[path = "scale/projects.rs"]
mod projects;
#[path = "scale/size.rs"]
mod size;
#[path = "scale/table.rs"]
mod table;

use daemon::{Daemon, Program};
use table::{Table, load, number, quantile};

/// The daemon's allocator, for the loader.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What sizes cost.
#[derive(Parser)]
struct Arguments {
    /// Passages of the projects that are measured.
    #[arg(long, value_delimiter = ',', default_value = "10000")]
    rows: Vec<usize>,
    /// The parts to measure; all if absent.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// Calls of each kind.
    #[arg(long, default_value_t = 100)]
    calls: usize,
    /// Projects of the part `projects`.
    #[arg(long, default_value_t = 100)]
    projects: usize,
    /// How long after the last call memory is read.
    #[arg(long, default_value_t = 30)]
    idle_seconds: u64,
    /// Where the homes are kept: a directory with a short name, for there are sockets below it.
    #[arg(long)]
    cache: Option<PathBuf>,
    /// Another `ccod` than the one that was built with this benchmark.
    #[arg(long)]
    ccod: Option<PathBuf>,
    /// A value of the daemon's configuration, such as `search.resident_bytes=0`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Makes the homes and measures nothing.
    #[arg(long)]
    only_load: bool,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Reads of one client.
    Search,
    /// From a daemon that has not opened the project to the first answer.
    Open,
    /// Searches of 64 clients.
    Clients,
    /// 2,000 requests at once.
    Flood,
    /// Many projects in turn.
    Projects,
    /// Memory of a daemon that has done nothing.
    Idle,
}

impl Arguments {
    fn wants(&self, part: Part) -> bool {
        !self.only_load && (self.only.is_empty() || self.only.contains(&part))
    }

    fn cache(&self) -> PathBuf {
        let default = || {
            let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
            cache.expect("a home directory, or --cache").join("ccod/scale")
        };
        self.cache.clone().unwrap_or_else(default)
    }

    fn program(&self) -> Program {
        let setting = |setting: &String| {
            let (key, value) = setting.split_once('=').expect("--set KEY=VALUE");
            (key.to_owned(), value.to_owned())
        };
        Program {
            path: self.ccod.clone().unwrap_or_else(|| support::engine().into()),
            settings: self.settings.iter().map(setting).collect(),
        }
    }
}

fn main() {
    let arguments = Arguments::parse();
    let (cache, program) = (arguments.cache(), arguments.program());
    std::fs::create_dir_all(&cache).unwrap();
    let idle = Duration::from_secs(arguments.idle_seconds);
    print_setting(&arguments, &program);

    let sizes_wanted = arguments.only_load
        || [Part::Search, Part::Open, Part::Clients, Part::Flood]
            .map(|part| arguments.wants(part))
            .contains(&true);
    // All are made before anything is measured.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let homes: Vec<(usize, PathBuf)> = match sizes_wanted {
        true => arguments
            .rows
            .iter()
            .map(|rows| (*rows, runtime.block_on(homes::of_rows(&cache, *rows))))
            .collect(),
        false => Vec::new(),
    };
    let many = (arguments.only_load || arguments.wants(Part::Projects))
        .then(|| runtime.block_on(homes::of_projects(&cache, arguments.projects)));
    drop(runtime);
    let columns: Vec<String> = homes.iter().map(|(rows, _)| format!("{rows} passages")).collect();

    if arguments.wants(Part::Idle) {
        idle_memory(&program, idle);
    }
    if arguments.wants(Part::Search) {
        let title = "Calls of one client, one after another, ms: p5 / p50 / p95 seen by the client, in it the daemon's \
                     `took_ms` (p50), and the time of processors that the daemon took for a call (mean). Where others \
                     use the machine, p5 and that tell most.";
        let table = Table::new(title, &columns);
        let sizes: Vec<_> = homes
            .iter()
            .map(|(rows, home)| size::measure(&program, home, *rows, arguments.calls, idle))
            .collect();
        size::print(&sizes, table, idle);
    }
    if arguments.wants(Part::Open) {
        let title = "From the first request for a project that is not open to its answer (a hybrid search, vector \
                     known), least / p50 / most of five starts, ms.";
        let mut table = Table::new(title, &columns);
        let times = homes.iter().map(|(_, home)| {
            let times = size::opening(&program, home);
            [0.0, 0.5, 1.0].map(|part| number(quantile(&times, part))).join(" / ")
        });
        table.row("opening", times.collect::<Vec<_>>().join(" | "));
        table.print();
    }
    let memory = ["MiB resident", "anonymous", "of files", "the most so far"];
    if arguments.wants(Part::Clients) {
        let columns = [&["searches/s", "p50 / p95, ms"][..], &memory[..]].concat();
        let mut table = Table::new(
            "64 clients, each with one search at a time, vectors known; the better of two times 5 s.",
            &columns.into_iter().map(str::to_owned).collect::<Vec<_>>(),
        );
        for (rows, home) in &homes {
            crowd::clients(&program, home, *rows, idle, &mut table);
        }
        table.print();
    }
    if arguments.wants(Part::Flood)
        && let Some((rows, home)) = homes.first()
    {
        let columns = ["answered", "refused", "lost", "median / last answer, ms"].map(str::to_owned);
        let title = format!("2,000 requests at once on 200 connections, {rows} passages.");
        let mut table = Table::new(&title, &columns);
        // It is written to.
        let copy = tempfile::Builder::new().prefix("flood").tempdir_in(&cache).unwrap();
        support::copy_tree(&home.join("knowledge"), &copy.path().join("knowledge"));
        crowd::flood(&program, copy.path(), *rows, &mut table);
        table.print();
    }
    if let Some(home) = many.filter(|_| arguments.wants(Part::Projects)) {
        let columns = [&["search, p50 / p95 ms"][..], &memory[..], &["open files"][..]].concat();
        let title = format!(
            "{} projects of {} items, searched in turn, vectors known.",
            arguments.projects,
            homes::SMALL_ROWS
        );
        let mut table = Table::new(&title, &columns.into_iter().map(str::to_owned).collect::<Vec<_>>());
        projects::measure(&program, &home, arguments.projects, idle, &mut table);
        table.print();
    }
}

/// With an empty home.
fn idle_memory(program: &Program, idle: Duration) {
    let columns = ["MiB resident", "anonymous", "of files", "the most so far"].map(str::to_owned);
    let mut table = Table::new("Memory of a daemon with no project open and no model.", &columns);
    let home = tempfile::Builder::new().prefix("cco").tempdir_in("/tmp").unwrap();
    let daemon = Daemon::start(program, home.path());
    let mut client = daemon.client();
    client.call("admin.health", &json!({}));
    client.call("knowledge.projects", &json!({}));
    table.row("after a first call", daemon.memory());
    drop(client);
    std::thread::sleep(idle);
    table.row(format!("{} s after the last call", idle.as_secs()), daemon.memory());
    daemon.stop();
    table.print();
}

fn print_setting(arguments: &Arguments, program: &Program) {
    let git = |arguments: &[&str]| {
        let output = std::process::Command::new("git")
            .args(arguments)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output();
        output.map_or_else(
            |_| String::new(),
            |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        )
    };
    let changed = if git(&["status", "--porcelain", "--untracked-files=no"]).is_empty() {
        ""
    } else {
        " (changed)"
    };
    let profile = if cfg!(debug_assertions) { "dev" } else { "release/dist" };
    match &arguments.ccod {
        Some(path) => println!("- program: {}", path.display()),
        None => println!(
            "- commit {}{changed}, profile {profile}",
            git(&["rev-parse", "--short", "HEAD"])
        ),
    }
    let information = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = information.lines().find(|line| line.starts_with("model name"));
    println!(
        "- {} cores, {}; load average {}",
        std::thread::available_parallelism().map_or(0, usize::from),
        processor.and_then(|line| line.split(": ").nth(1)).unwrap_or("unknown"),
        load()
    );
    println!(
        "- passages: {:?}; {} calls of each kind; one passage an item",
        arguments.rows, arguments.calls
    );
    println!("- settings other than the defaults: {:?}", program.settings);
}
