//! Homes with generated items: texts by Zipf's law, vectors around directions that the model has.
//!
//! They are made by the store itself, as the daemon's writer does it, but for the embedding: a million items would take
//! it half a day. What was made is kept for the next run.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use ccod_actors::domain::{Content, KnowledgeType, NewItem, OnDuplicate, ProjectName, parse_time};
use ccod_actors::embedder::{ModelCell, TokenizedText};
use ccod_actors::store::table::rows::EmbeddedPassage;
use ccod_actors::store::upkeep::{Pace, due_steps};
use ccod_actors::store::{Durability, ModelIdentity, Store, StoreConfig, StoreLock, WriteAccess};
use ccod_actors::writer::commit::plan;
use ccod_actors::writer::lane::GroupLimits;
use ccod_actors::writer::{PreparedItem, WriteOp};
use chrono::TimeDelta;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

use crate::texts::Texts;

/// The project that is measured.
pub(crate) const ITEMS: &str = "items";
/// A small one, which is searched to have the vectors of queries at hand.
pub(crate) const SMALL: &str = "small";
/// Items of a small project.
pub(crate) const SMALL_ROWS: usize = 100;
/// A filter by one of them keeps 1 %.
pub(crate) const AGENTS: usize = 100;

/// Items of a session.
const SESSION: usize = 40;
/// Items of a commit. The daemon's have 1,000 at most; what is left after the upkeep is the same.
const COMMIT_ROWS: usize = 5_000;
/// Texts whose vectors all others lie around.
const DIRECTIONS: usize = 400;
/// Of the vocabulary, which queries have too.
const VOCABULARY_SEED: u64 = 7;
/// A home that was made by another version of this file is made again.
const VERSION: u32 = 1;

/// The texts of items and of queries.
pub(crate) fn vocabulary() -> Texts {
    Texts::new(&mut StdRng::seed_from_u64(VOCABULARY_SEED))
}

/// The id of an item, in the form of those that the daemon gives.
pub(crate) fn id(number: usize) -> String {
    let hash = (number as u32).wrapping_mul(0x9e37_79b9) ^ 0x5bd1_e995;
    format!(
        "{}-{}-{hash:08x}",
        kind(number),
        1_760_000_000_000 + number as u64 * 977
    )
}

/// The agent of an item.
pub(crate) fn agent(number: usize) -> String {
    format!("agent{}", number % AGENTS)
}

fn kind(number: usize) -> KnowledgeType {
    KnowledgeType::ALL[number % KnowledgeType::ALL.len()]
}

/// The name of one of many projects.
pub(crate) fn project_name(number: usize) -> String {
    format!("project-{number:04}")
}

/// A home with one project of so many rows and a small one.
pub(crate) async fn of_rows(cache: &Path, rows: usize) -> PathBuf {
    let projects = [(SMALL.to_owned(), SMALL_ROWS), (ITEMS.to_owned(), rows)];
    kept(cache, &format!("rows-{rows}"), &projects).await
}

/// A home with so many small projects, and [`SMALL`].
pub(crate) async fn of_projects(cache: &Path, projects: usize) -> PathBuf {
    let mut names = vec![(SMALL.to_owned(), SMALL_ROWS)];
    names.extend((0..projects).map(|number| (project_name(number), SMALL_ROWS)));
    kept(cache, &format!("projects-{projects}"), &names).await
}

/// The home of this name, which is made if it is not there yet.
async fn kept(cache: &Path, name: &str, projects: &[(String, usize)]) -> PathBuf {
    let home = cache.join(format!("{name}-v{VERSION}"));
    if home.exists() {
        return home;
    }
    let begun = Instant::now();
    // Under another name until it is whole.
    let unfinished = cache.join(format!("{name}-unfinished"));
    std::fs::remove_dir_all(&unfinished).ok();
    load(&unfinished, projects).await;
    std::fs::rename(&unfinished, &home).unwrap();
    eprintln!("{}: made in {:.0} s", home.display(), begun.elapsed().as_secs_f64());
    home
}

async fn load(home: &Path, projects: &[(String, usize)]) {
    let knowledge_dir = home.join("knowledge");
    std::fs::create_dir_all(&knowledge_dir).unwrap();
    let model = ModelCell::bundled().unwrap();
    let mut items = Items::new(&model);
    let config = StoreConfig {
        knowledge_dir: knowledge_dir.clone(),
        durability: Durability::Fast,
        index_cache_bytes: 64 << 20,
        metadata_cache_bytes: 64 << 20,
        resident_bytes: 0,
        text_cache_bytes: 0,
        min_free_bytes: 1 << 30,
        model: ModelIdentity {
            name: model.identity().to_owned(),
            dimensions: model.dimensions(),
        },
        retention: TimeDelta::days(7),
    };
    let lock = StoreLock::acquire(&knowledge_dir).unwrap();
    let (_store, access) = Store::open(config, lock).unwrap();
    for (done, (name, rows)) in projects.iter().enumerate() {
        let project = ProjectName::parse(name, "project_id").unwrap();
        let mut loaded = 0;
        while loaded < *rows {
            let end = (loaded + COMMIT_ROWS).min(*rows);
            let group: Vec<WriteOp> = (loaded..end).map(|number| WriteOp::Store(items.item(number))).collect();
            commit(&access, &project, &group).await;
            loaded = end;
            upkeep(
                &access,
                &project,
                if loaded == *rows { Pace::Quiet } else { Pace::Busy },
            )
            .await;
            eprint!(
                "\r{name}: {loaded} of {rows}, project {} of {}    ",
                done + 1,
                projects.len()
            );
        }
        // Not the memory of a thousand open tables.
        let known = access.project(&project).unwrap();
        access.forget_all(&known).await;
    }
    eprintln!();
}

async fn commit(access: &WriteAccess, project: &ProjectName, group: &[WriteOp]) {
    let known = access.project(project).unwrap();
    let mut guard = access.lock(&known, true).await.unwrap();
    let table = guard.table().unwrap();
    let limits = GroupLimits {
        max_rows: 1_000,
        max_bytes: 8 << 20,
    };
    let planned = plan(table, group, limits, None).await.unwrap();
    planned.commit(table).await.unwrap();
    guard.publish().await.unwrap();
}

/// What the daemon would do between its commits, and after the last of them.
async fn upkeep(access: &WriteAccess, project: &ProjectName, pace: Pace) {
    let known = access.project(project).unwrap();
    let mut guard = access.lock(&known, false).await.unwrap();
    loop {
        let table = guard.table().unwrap();
        let debt = table.debt().await.unwrap();
        let Some(step) = due_steps(&debt, pace).first().copied() else {
            return;
        };
        if !table.maintain(step).await.unwrap() {
            return;
        }
        guard.publish().await.unwrap();
    }
}

/// Generated items.
struct Items {
    texts: Texts,
    random: StdRng,
    directions: Vec<Vec<f32>>,
}

impl Items {
    fn new(model: &ModelCell) -> Self {
        let (texts, mut random) = (vocabulary(), StdRng::seed_from_u64(11));
        let tokenizer = model.tokenizer().unwrap();
        let mut engine = model.build_engine().unwrap();
        let mut directions = Vec::new();
        while directions.len() < DIRECTIONS {
            let batch: Vec<TokenizedText> = (0..16)
                .map(|_| tokenizer.encode_query(&texts.text(&mut random)))
                .collect();
            directions.extend(engine.embed(&batch.iter().collect::<Vec<_>>()).unwrap());
        }
        Self {
            texts,
            random,
            directions,
        }
    }

    /// One passage each, also the long ones that the daemon would cut.
    fn item(&mut self, number: usize) -> PreparedItem {
        let text = self.texts.text(&mut self.random);
        let item = NewItem {
            content: Content {
                text: text.clone(),
                knowledge_type: kind(number),
                agent: Some(agent(number)),
                session_id: Some(format!("session-{:06}", number / SESSION)),
                ..Content::default()
            },
            id: Some(id(number)),
            idempotency_key: None,
            on_duplicate: OnDuplicate::Store,
            timestamp: parse_time("2026-01-01T00:00:00Z", "timestamp").unwrap()
                + TimeDelta::milliseconds(number as i64 * 977),
            updated_at: None,
        };
        PreparedItem {
            content_hash: item.content_hash(),
            item,
            passages: vec![EmbeddedPassage {
                start: 0,
                end: text.chars().count(),
                text,
                vector: self.vector(),
            }],
        }
    }

    /// At a cosine of 0.5 to 0.95 to one of the directions.
    fn vector(&mut self) -> Arc<[f32]> {
        let direction = &self.directions[self.random.random_range(0..self.directions.len())];
        let mut bytes = vec![0; direction.len()];
        self.random.fill_bytes(&mut bytes);
        let noise: Vec<f32> = bytes.into_iter().map(|byte| f32::from(byte) - 127.5).collect();
        let norm = noise.iter().map(|x| x * x).sum::<f32>().sqrt();
        let cosine: f32 = self.random.random_range(0.5..0.95);
        let away = (1.0 - cosine * cosine).sqrt() / norm;
        let vector: Vec<f32> = direction
            .iter()
            .zip(noise)
            .map(|(a, b)| a * cosine + b * away)
            .collect();
        let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        vector.into_iter().map(|x| x / norm).collect()
    }
}
