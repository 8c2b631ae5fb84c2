//! The store alone, without embedder and socket: vector, keyword and hybrid search and single commits over
//! 10,000 rows of random vectors and realistic words. For comparing build profiles and settings.
//!
//! `cargo bench --bench search [-- ROWS]`, and with `--profile dist` for the shipped one.

#![recursion_limit = "256"]

use std::sync::Arc;
use std::time::{Duration, Instant};

use ccod_actors::domain::{
    Content, Filter, NewItem, OnDuplicate, OneOrMany, ProjectName, SearchMode, UpdateParams, now_ms,
};
use ccod_actors::store::table::rows::EmbeddedPassage;
use ccod_actors::store::upkeep::{Pace, due_steps};
use ccod_actors::store::view::search::search;
use ccod_actors::store::view::{ListRequest, SearchRequest};
use ccod_actors::store::{Durability, ModelIdentity, ProjectView, Store, StoreConfig, StoreLock, WriteAccess};
use ccod_actors::writer::commit::plan;
use ccod_actors::writer::lane::GroupLimits;
use ccod_actors::writer::{DeleteTarget, PreparedItem, PreparedUpdate, UndoNote, WriteOp};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

#[path = "common/texts.rs"]
mod texts;

use texts::Texts;

/// The daemon's allocator: with another one the profiles would be compared as no user runs them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROWS: usize = 10_000;
const DIMENSIONS: usize = 384;
/// A filter by one of them keeps 1 %.
const AGENTS: usize = 100;

fn vector(random: &mut StdRng) -> Arc<[f32]> {
    let vector: Vec<f32> = (0..DIMENSIONS).map(|_| random.random_range(-1.0..1.0)).collect();
    let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.iter().map(|x| x / norm).collect()
}

/// One passage each, also the long ones that the daemon would cut.
fn item(texts: &Texts, random: &mut StdRng, number: usize) -> PreparedItem {
    let text = texts.text(random);
    let item = NewItem {
        content: Content {
            text: text.clone(),
            agent: Some(format!("agent{}", number % AGENTS)),
            ..Content::default()
        },
        id: None,
        idempotency_key: None,
        on_duplicate: OnDuplicate::Store,
        timestamp: now_ms(),
        updated_at: None,
    };
    PreparedItem {
        content_hash: item.content_hash(),
        item,
        passages: vec![EmbeddedPassage {
            start: 0,
            end: text.chars().count(),
            text,
            vector: vector(random),
        }],
    }
}

async fn commit(access: &WriteAccess, project: &ProjectName, items: &[PreparedItem]) {
    let items: Vec<WriteOp> = items.iter().cloned().map(WriteOp::Store).collect();
    write(access, project, &items).await;
}

async fn write(access: &WriteAccess, project: &ProjectName, items: &[WriteOp]) {
    let known = access.project(project).unwrap();
    let mut guard = access.lock(&known, true).await.unwrap();
    let table = guard.table().unwrap();
    let limits = GroupLimits {
        max_rows: 1_000,
        max_bytes: 8 << 20,
    };
    let planned = plan(table, items, limits, None).await.unwrap();
    planned.commit(table).await.unwrap();
    guard.publish().await.unwrap();
}

async fn upkeep(access: &WriteAccess, project: &ProjectName) -> usize {
    let known = access.project(project).unwrap();
    let mut guard = access.lock(&known, false).await.unwrap();
    let mut steps = 0;
    loop {
        let table = guard.table().unwrap();
        let debt = table.debt().await.unwrap();
        let Some(step) = due_steps(&debt, Pace::Busy).first().copied() else {
            break;
        };
        let begun = Instant::now();
        if !table.maintain(step).await.unwrap() {
            break;
        }
        println!("  {step:?}: {:.1} ms", begun.elapsed().as_secs_f64() * 1e3);
        guard.publish().await.unwrap();
        steps += 1;
    }
    steps
}

fn report(name: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
    println!(
        "{name:44} p50 {:8.3} ms  p99 {:8.3} ms  ({} runs)",
        at(0.5),
        at(0.99),
        times.len()
    );
}

#[tokio::main]
async fn main() {
    let rows = std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(ROWS);
    println!(
        "profile: {}",
        if cfg!(debug_assertions) { "dev" } else { "release/dist" }
    );
    println!("rows: {rows}, dimensions: {DIMENSIONS}");
    let mut random = StdRng::seed_from_u64(7);
    let texts = Texts::new(&mut random);
    let home = tempfile::tempdir().unwrap();
    for durability in [Durability::Full, Durability::Fast] {
        let config = StoreConfig {
            knowledge_dir: home.path().join(durability.as_str()),
            durability,
            index_cache_bytes: 64 << 20,
            metadata_cache_bytes: 64 << 20,
            resident_bytes: 1 << 30,
            text_cache_bytes: 32 << 20,
            min_free_bytes: 0,
            model: ModelIdentity {
                name: "random@0".to_owned(),
                dimensions: DIMENSIONS,
            },
            retention: chrono::TimeDelta::days(7),
        };
        std::fs::create_dir_all(&config.knowledge_dir).unwrap();
        let lock = StoreLock::acquire(&config.knowledge_dir).unwrap();
        let (store, access) = Store::open(config, lock).unwrap();
        let project = ProjectName::default();

        let mut times = Vec::new();
        for number in 0..200 {
            let one = [item(&texts, &mut random, number)];
            let begun = Instant::now();
            commit(&access, &project, &one).await;
            times.push(begun.elapsed());
        }
        report(&format!("single commit, durability {}", durability.as_str()), times);
        if durability == Durability::Fast {
            continue;
        }
        println!(
            "upkeep after 200 single commits: {} steps",
            upkeep(&access, &project).await
        );
        for start in (200..rows).step_by(1_000) {
            let items: Vec<PreparedItem> = (start..(start + 1_000).min(rows))
                .map(|n| item(&texts, &mut random, n))
                .collect();
            commit(&access, &project, &items).await;
        }
        let views = vec![store.view(&project).await.unwrap().unwrap()];
        println!("before upkeep: {} fragments", views[0].fragments());
        searches(&views, &texts, &mut random, "unindexed rows").await;
        drop(views);
        println!("upkeep: {} steps", upkeep(&access, &project).await);
        let views = vec![store.view(&project).await.unwrap().unwrap()];
        println!("after upkeep: {} fragments", views[0].fragments());
        searches(&views, &texts, &mut random, "after upkeep").await;
        others(&views[0], &mut random, rows).await;
        drop(views);
        changes(&access, &project, &mut random).await;
        opening(&access, &project, &mut random).await;
    }
}

/// What is asked besides searches.
async fn others(view: &Arc<ProjectView>, random: &mut StdRng, rows: usize) {
    let index = view.list(&list(rows)).await.unwrap();
    let ids: Vec<String> = index.items.into_iter().map(|stored| stored.item.id).collect();
    for round in ["first", "again"] {
        let mut times = Vec::new();
        let mut some = StdRng::seed_from_u64(11);
        for _ in 0..300 {
            let id = [ids[some.random_range(0..ids.len())].clone()];
            let begun = Instant::now();
            assert_eq!(view.get(&id, usize::MAX).await.unwrap().len(), 1);
            times.push(begun.elapsed());
        }
        report(&format!("get by id, {round}"), times);
    }
    let mut times = Vec::new();
    for _ in 0..100 {
        let begun = Instant::now();
        assert_eq!(view.list(&list(20)).await.unwrap().items.len(), 20);
        times.push(begun.elapsed());
    }
    report("list of 20", times);
    let mut times = Vec::new();
    for _ in 0..150 {
        let mut request = request(String::new(), Some(vector(random)), SearchMode::Vector);
        let agent = format!("agent{}", random.random_range(0..AGENTS));
        request.filter.agent = Some(OneOrMany::One(agent));
        let begun = Instant::now();
        search(std::slice::from_ref(view), &request, "random@0").await.unwrap();
        times.push(begun.elapsed());
    }
    report("search vector, 1 % pass a filter", times);
}

fn list(limit: usize) -> ListRequest {
    ListRequest {
        filter: Filter::default(),
        newest_first: true,
        limit,
        after: None,
        max_answer_bytes: usize::MAX,
    }
}

/// Single changes of items, each with the counts of what is there afterwards.
async fn changes(access: &WriteAccess, project: &ProjectName, random: &mut StdRng) {
    let store = access.store();
    let view = store.view(project).await.unwrap().unwrap();
    let page = view.list(&list(usize::MAX / 2)).await.unwrap();
    let total = page.total;
    let ids: Vec<String> = page.items.into_iter().map(|stored| stored.item.id).collect();
    drop(view);
    let (mut updates, mut deletes, mut counts) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..60 {
        let id = ids[(round * 97) % ids.len()].clone();
        let change = UpdateParams {
            id: id.clone(),
            agent: Some(format!("agent{}", random.random_range(0..AGENTS))),
            session_id: Some(format!("session{round}")),
            ..UpdateParams::default()
        };
        let passages = None;
        let begun = Instant::now();
        write(access, project, &[WriteOp::Update(PreparedUpdate { change, passages })]).await;
        updates.push(begun.elapsed());
        let begun = Instant::now();
        let target = DeleteTarget::Ids(vec![id]);
        write(access, project, &[WriteOp::Delete(target, UndoNote::default())]).await;
        deletes.push(begun.elapsed());
        let view = store.view(project).await.unwrap().unwrap();
        let begun = Instant::now();
        let there = view.stats().await.unwrap().total;
        counts.push(begun.elapsed());
        assert_eq!(there, total - 1 - round as u64);
    }
    report("single update, durable", updates);
    report("single delete, durable", deletes);
    report("stats, after each of them", counts);
}

/// From a table that is not open to the first answer.
async fn opening(access: &WriteAccess, project: &ProjectName, random: &mut StdRng) {
    let mut times = Vec::new();
    for _ in 0..10 {
        let known = access.project(project).unwrap();
        access.forget_all(&known).await;
        let request = request(String::new(), Some(vector(random)), SearchMode::Vector);
        let begun = Instant::now();
        let views = [access.store().view(project).await.unwrap().unwrap()];
        search(&views, &request, "random@0").await.unwrap();
        times.push(begun.elapsed());
    }
    report("opening until a first search, vector known", times);
}

fn request(query: String, vector: Option<Arc<[f32]>>, mode: SearchMode) -> SearchRequest {
    SearchRequest {
        query,
        vector,
        mode,
        filter: Filter::default(),
        limit: 10,
        offset: 0,
        threshold: None,
        min_similarity: -1.0,
        at: None,
        except: None,
        text_budget: None,
        max_answer_bytes: usize::MAX,
        keywords_ahead: None,
    }
}

/// Each query is a new one. A single one of rare words may find nothing.
async fn searches(views: &[Arc<ProjectView>], texts: &Texts, random: &mut StdRng, state: &str) {
    for mode in [SearchMode::Vector, SearchMode::Text, SearchMode::Hybrid] {
        let mut times = Vec::new();
        let mut hits = 0;
        for _ in 0..150 {
            let vector = (mode != SearchMode::Text).then(|| vector(random));
            let request = request(texts.query(random), vector, mode);
            let begun = Instant::now();
            let found = search(views, &request, "random@0").await.unwrap();
            times.push(begun.elapsed());
            hits += found.hits.len();
        }
        assert!(hits > 0);
        report(&format!("search {}, {state}", mode.as_str()), times);
    }
}
