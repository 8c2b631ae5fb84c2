//! A durable store beside the system calls that it needs, and 64 clients beside the embedder alone.
//!
//! `cargo bench --bench commit [-- ROUNDS]`. The first part runs, in turn: the calls without LanceDB, one sync after the
//! other; the same calls with all syncs at once that may be; stores by one client through the writer, their vectors
//! given, with `durability` "full" and "fast". The second part runs, in turn, what 64 clients get out of the embedder
//! alone and how many they store. Prints its numbers; nothing is asserted.

#![recursion_limit = "256"]

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ccod_actors::deadline::Deadline;
use ccod_actors::domain::{Content, NewItem, OnDuplicate, ProjectName, now_ms};
use ccod_actors::embedder::{EmbedderConfig, EmbedderShared, ModelCell};
use ccod_actors::knowledge::{Asked, Knowledge, Limits};
use ccod_actors::reader::ReaderConfig;
use ccod_actors::restart::RestartPolicy;
use ccod_actors::store::table::rows::EmbeddedPassage;
use ccod_actors::store::{Durability, ModelIdentity, Store, StoreConfig, StoreLock};
use ccod_actors::supervisor::{self, SupervisorArguments};
use ccod_actors::writer::{PreparedItem, WriterConfig, WriterHandle};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_util::sync::CancellationToken;

#[path = "common/texts.rs"]
#[allow(dead_code)]
mod texts;

#[path = "common/facts.rs"]
mod facts;

use facts::fact;
use texts::Texts;

/// The daemon's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Rounds of the first part.
const ROUNDS: usize = 300;
/// Stores before anything is measured.
const WARM_UP: usize = 30;
/// Clients of the second part, how long each of its measurements takes, and how many there are of each kind.
const CLIENTS: u64 = 64;
const MEASURE: Duration = Duration::from_secs(8);
const TURNS: usize = 3;

/// The parts of a daemon but the wire.
struct Parts {
    knowledge: Knowledge,
    writer: WriterHandle,
    table: PathBuf,
}

impl Parts {
    async fn start(home: &Path, durability: Durability) -> Self {
        fs::create_dir_all(home).unwrap();
        let model = Arc::new(ModelCell::bundled().unwrap());
        let config = StoreConfig {
            knowledge_dir: home.to_owned(),
            durability,
            index_cache_bytes: 64 << 20,
            metadata_cache_bytes: 64 << 20,
            resident_bytes: 1 << 30,
            text_cache_bytes: 32 << 20,
            min_free_bytes: 64 << 20,
            model: ModelIdentity {
                name: model.identity().to_owned(),
                dimensions: model.dimensions(),
            },
            retention: chrono::TimeDelta::days(7),
        };
        let lock = StoreLock::acquire(home).unwrap();
        let (store, access) = Store::open(config, lock).unwrap();
        let (_, _, mut routes) = supervisor::start(SupervisorArguments {
            store: Arc::clone(&store),
            access,
            writer: WriterConfig {
                max_group_rows: 1_000,
                max_group_bytes: 1 << 24,
                queue_requests: 1_000,
                queue_bytes: 1 << 26,
                setbacks: RestartPolicy::default(),
            },
            readers: ReaderConfig {
                workers: 2,
                queue_requests: 1_000,
            },
            embedder: EmbedderShared::new(EmbedderConfig::default(), model),
            restarts: RestartPolicy::default(),
        })
        .await
        .unwrap();
        let ready = routes.wait_for(|routes| routes.writer.is_some() && routes.embedder.is_some());
        let writer = ready.await.unwrap().writer.clone().unwrap();
        let limits = Limits {
            max_text_bytes: 1 << 20,
            max_metadata_bytes: 1 << 16,
            max_batch: 1_000,
            max_answer_bytes: 1 << 20,
            min_similarity: 0.2,
        };
        Self {
            knowledge: Knowledge::new(store, routes, limits),
            writer,
            table: home
                .join(ProjectName::default().as_str())
                .join("orchestra_knowledge.lance"),
        }
    }

    /// Stores one item, and answers how long that took.
    async fn store(&self, item: PreparedItem) -> Duration {
        let begun = Instant::now();
        let stored = self
            .writer
            .store(
                ProjectName::default(),
                vec![item],
                None,
                Deadline::after(Duration::from_secs(60)),
            )
            .await;
        let took = begun.elapsed();
        assert!(stored.unwrap().items[0].is_ok());
        took
    }
}

/// A table's directory as a commit finds it, and what a commit writes into it.
struct Bare {
    table: PathBuf,
    data: Vec<u8>,
    manifest: Vec<u8>,
    number: usize,
}

impl Bare {
    fn new(table: PathBuf, (data, manifest): (usize, usize)) -> Self {
        for directory in ["data", "_versions"] {
            fs::create_dir_all(table.join(directory)).unwrap();
        }
        Self {
            table,
            data: vec![7; data],
            manifest: vec![9; manifest],
            number: 0,
        }
    }

    /// The calls of one commit, with these syncs before the manifest can be seen, one after the other or all at once.
    fn commit(&mut self, at_once: bool) -> Duration {
        self.number += 1;
        let (data, versions) = (self.table.join("data"), self.table.join("_versions"));
        let file = data.join(format!("{}.lance", self.number));
        let manifest = versions.join(format!("{}.manifest", self.number));
        let staged = versions.join(format!("{}.manifest#1", self.number));
        let begun = Instant::now();
        let written = data.join(".tmp");
        fs::write(&written, &self.data).unwrap();
        fs::rename(&written, &file).unwrap();
        let sync = |path: &Path| File::open(path).unwrap().sync_all().unwrap();
        if at_once {
            let mut created = File::create_new(&staged).unwrap();
            created.write_all(&self.manifest).unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| sync(&file));
                scope.spawn(|| sync(&data));
                created.sync_all().unwrap();
            });
        } else {
            sync(&file);
            sync(&data);
            let mut created = File::create_new(&staged).unwrap();
            created.write_all(&self.manifest).unwrap();
            created.sync_all().unwrap();
        }
        fs::hard_link(&staged, &manifest).unwrap();
        sync(&versions);
        fs::remove_file(&staged).unwrap();
        begun.elapsed()
    }
}

fn item(texts: &Texts, random: &mut StdRng, dimensions: usize) -> PreparedItem {
    let text = texts.text(random);
    let item = NewItem {
        content: Content {
            text: text.clone(),
            agent: Some("agent".to_owned()),
            ..Content::default()
        },
        id: None,
        idempotency_key: None,
        on_duplicate: OnDuplicate::Store,
        timestamp: now_ms(),
        updated_at: None,
    };
    let vector: Vec<f32> = (0..dimensions).map(|_| random.random_range(-1.0..1.0)).collect();
    let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    PreparedItem {
        content_hash: item.content_hash(),
        item,
        passages: vec![EmbeddedPassage {
            start: 0,
            end: text.chars().count(),
            text,
            vector: vector.iter().map(|x| x / norm).collect(),
        }],
    }
}

/// The bytes of the file in a directory that was written last.
fn newest(directory: &Path) -> usize {
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let written = files.map(|entry| entry.metadata().unwrap());
    let newest = written.max_by_key(|metadata| metadata.modified().unwrap());
    newest.unwrap().len() as usize
}

fn report(name: &str, mut times: Vec<Duration>) -> [f64; 2] {
    times.sort();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
    let [p50, p95] = [at(0.5), at(0.95)];
    println!("{name:58} p50 {p50:7.3} ms  p95 {p95:7.3} ms");
    [p50, p95]
}

async fn one_client(home: &Path, rounds: usize) {
    let mut random = StdRng::seed_from_u64(7);
    let texts = Texts::new(&mut random);
    let full = Parts::start(&home.join("full"), Durability::Full).await;
    let fast = Parts::start(&home.join("fast"), Durability::Fast).await;
    let dimensions = ModelCell::bundled().unwrap().dimensions();
    for _ in 0..WARM_UP {
        full.store(item(&texts, &mut random, dimensions)).await;
        fast.store(item(&texts, &mut random, dimensions)).await;
    }
    let sizes = (newest(&full.table.join("data")), newest(&full.table.join("_versions")));
    println!("bytes of a data file, of a manifest: {sizes:?}");
    let bare = [false, true].map(|at_once| {
        let bare = Bare::new(home.join(format!("bare-{at_once}")), sizes);
        Arc::new(parking_lot::Mutex::new(bare))
    });
    let mut times: [Vec<Duration>; 4] = Default::default();
    for _ in 0..rounds {
        for (number, at_once) in [(0, false), (1, true)] {
            let bare = Arc::clone(&bare[number]);
            let took = tokio::task::spawn_blocking(move || bare.lock().commit(at_once)).await;
            times[number].push(took.unwrap());
        }
        for (number, parts) in [(2, &full), (3, &fast)] {
            times[number].push(parts.store(item(&texts, &mut random, dimensions)).await);
        }
    }
    let [in_turn, at_once, full, fast] = times;
    let in_turn = report("the calls alone, one sync after the other", in_turn);
    let at_once = report("the calls alone, all syncs at once that may be", at_once);
    let full = report("store, vector given, durability full", full);
    report("store, vector given, durability fast", fast);
    for (name, bare) in [("one sync after the other", in_turn), ("syncs at once", at_once)] {
        println!(
            "a durable store takes {:.2} (p50) and {:.2} (p95) times as long as the calls alone, {name}",
            full[0] / bare[0],
            full[1] / bare[1]
        );
    }
}

/// How many texts a second 64 clients get embedded, or stored.
async fn many_clients(parts: &Arc<Parts>, stores: bool, next: &Arc<AtomicU64>) -> f64 {
    let begun = Instant::now();
    let clients = (0..CLIENTS).map(|client| {
        let (parts, next) = (Arc::clone(parts), Arc::clone(next));
        tokio::spawn(async move {
            let mut done = 0;
            while begun.elapsed() < MEASURE {
                let text = fact(next.fetch_add(1, Ordering::Relaxed) as usize);
                let asked = Asked {
                    deadline: Deadline::after(Duration::from_secs(60)),
                    origin: client,
                    cancelled: CancellationToken::new(),
                };
                if stores {
                    let params = serde_json::from_value(serde_json::json!({"text": text})).unwrap();
                    let stored = parts.knowledge.store(&ProjectName::default(), params, &asked).await;
                    stored.unwrap();
                } else {
                    parts.knowledge.embed(vec![text], &asked).await.unwrap();
                }
                done += 1;
            }
            done
        })
    });
    let mut done = 0;
    for client in clients.collect::<Vec<_>>() {
        done += client.await.unwrap();
    }
    f64::from(done) / begun.elapsed().as_secs_f64()
}

#[tokio::main]
async fn main() {
    let rounds = std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(ROUNDS);
    println!(
        "profile: {}",
        if cfg!(debug_assertions) { "dev" } else { "release/dist" }
    );
    let home = tempfile::tempdir().unwrap();
    one_client(home.path(), rounds).await;

    let parts = Arc::new(Parts::start(&home.path().join("many"), Durability::Full).await);
    let next = Arc::new(AtomicU64::new(0));
    many_clients(&parts, true, &next).await;
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..TURNS {
        for stores in [false, true] {
            rates[usize::from(stores)].push(many_clients(&parts, stores, &next).await);
        }
    }
    let [embedded, stored] = rates;
    println!("{CLIENTS} clients, texts a second: embedded {embedded:.1?}, stored {stored:.1?}");
    let shares: Vec<f64> = stored.iter().zip(&embedded).map(|(s, e)| 100.0 * s / e).collect();
    println!("stored of what is embedded alone: {shares:.0?} %");
}
