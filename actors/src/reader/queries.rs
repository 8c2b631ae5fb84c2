//! The queries: each reads immutable views. Where a read finds damage, the query is repeated without what is damaged.

use std::sync::Arc;

use futures::StreamExt;

use super::answers::{
    FailedProject, FoundItems, MatchingItems, MatchingSize, ProjectStats, Projects, Seen, StatsReport, Within,
};
use crate::domain::{Filter, ProjectName, SearchMode, StoredItem};
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::panics;
use crate::store::table::schema::TableShape;
use crate::store::upkeep::Debt;
use crate::store::view::search::{PageVersion, SearchOutcome, search, search_in};
use crate::store::view::{KeywordsAhead, ListPage, ListRequest, ProjectView, SearchRequest};
use crate::store::{Counts, Project, Store};
use crate::writer::DeleteTarget;

/// Runs a query that may meet damaged bytes: Lance can panic over them, and that is an error like others.
async fn caught<R>(query: impl Future<Output = KnowledgeResult<R>>) -> KnowledgeResult<R> {
    let query = async {
        fail::fail_point!("reader::query");
        query.await
    };
    match panics::catch(query).await {
        Ok(result) => result,
        Err(panic) => Err(KnowledgeError::unreadable(format_args!("reading failed: {panic}"))),
    }
}

/// Projects that are opened, or read for the first time, side by side: more would only wait for the disk and the
/// processors.
const AT_ONCE: usize = 8;

/// Does something with each of these, some at a time, and answers the results in their order. One that takes long, or
/// fails, holds up none of the others.
async fn side_by_side<'a, P, R, F: Future<Output = R>>(projects: &'a [P], work: impl Fn(&'a P) -> F) -> Vec<R> {
    let of = |(place, project)| {
        let work = work(project);
        async move { (place, work.await) }
    };
    let works: Vec<_> = projects.iter().enumerate().map(of).collect();
    let mut done: Vec<(usize, R)> = futures::stream::iter(works).buffer_unordered(AT_ONCE).collect().await;
    done.sort_unstable_by_key(|(place, _)| *place);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Has the indexes of several views read side by side that a search would read one after another. As many as fit: one
/// that pushes out another is read by the search itself.
async fn read_ahead(store: &Store, views: &[Arc<ProjectView>]) {
    let read = |view: &Arc<ProjectView>| {
        let view = Arc::clone(view);
        async move {
            let resident = store.resident();
            if view.index_at_hand().is_none() && resident.bytes < resident.limit_bytes / 2 {
                // Whatever is wrong with it, the search finds it too, and says so.
                caught(view.index()).await.ok();
            }
        }
    };
    if views.len() > 1 {
        side_by_side(views, read).await;
    }
}

/// Looks for damage after a read has failed. True if the read is worth repeating.
async fn reexamine(store: &Store, view: &Arc<ProjectView>, query: Option<&str>) -> bool {
    store.reexamine(view, query).await.unwrap_or_else(|error| {
        tracing::warn!(project = %view.project(), %error, "a project could not be examined");
        false
    })
}

/// Runs a query on a project's present view. It finds nothing where nothing was stored in the project, or where no
/// version of it can be read, so that it starts again empty. Where a read finds damage, the query is repeated without
/// what is damaged.
pub(super) async fn on_view<R, F: Future<Output = KnowledgeResult<R>>>(
    store: &Store,
    project: &ProjectName,
    query: impl Fn(Arc<ProjectView>) -> F,
) -> KnowledgeResult<Seen<Option<R>>> {
    let seen = async |view: Arc<ProjectView>| {
        let found = caught(query(Arc::clone(&view))).await?;
        Ok(Seen {
            found: Some(found),
            degraded: view.degraded(),
        })
    };
    let Some(view) = store.view_or_empty(project).await? else {
        return Ok(unseen(store, project));
    };
    match seen(Arc::clone(&view)).await {
        Err(error @ KnowledgeError::Unreadable { .. }) => {
            if !reexamine(store, &view, None).await {
                return Err(error);
            }
            match store.view_or_empty(project).await? {
                Some(view) => seen(view).await,
                None => Ok(unseen(store, project)),
            }
        }
        result => result,
    }
}

/// What there is to see of a project without a version that can be read.
fn unseen<R>(store: &Store, project: &ProjectName) -> Seen<Option<R>> {
    Seen {
        found: None,
        degraded: store.lost(project).map(|reason| format!("project {project}: {reason}")),
    }
}

impl<R: Default> Seen<Option<R>> {
    /// Nothing found is what there is where there is nothing.
    fn or_default(self) -> Seen<R> {
        Seen {
            found: self.found.unwrap_or_default(),
            degraded: self.degraded,
        }
    }
}

/// Lists the items of a project.
pub(super) async fn list(
    store: &Arc<Store>,
    project: &ProjectName,
    request: &ListRequest,
) -> KnowledgeResult<Seen<ListPage>> {
    let page = on_view(store, project, move |view| async move { view.list(request).await });
    Ok(page.await?.or_default())
}

/// Gets items by id.
pub(super) async fn get(
    store: &Arc<Store>,
    project: &ProjectName,
    request: &Within<Vec<String>>,
) -> KnowledgeResult<Seen<FoundItems>> {
    let found = on_view(store, project, move |view| async move {
        Ok(FoundItems {
            items: view.get(&request.wanted, request.max_answer_bytes).await?,
            version: view.sequence(),
        })
    });
    Ok(found.await?.or_default())
}

/// The revisions of an item, newest first.
pub(super) async fn history(
    store: &Arc<Store>,
    project: &ProjectName,
    request: &Within<String>,
) -> KnowledgeResult<Seen<Vec<StoredItem>>> {
    let found = on_view(store, project, move |view| async move {
        view.history(&request.wanted, request.max_answer_bytes).await
    });
    Ok(found.await?.or_default())
}

/// Which items a delete would delete.
pub(super) async fn matching(
    store: &Arc<Store>,
    project: &ProjectName,
    request: &Within<DeleteTarget>,
) -> KnowledgeResult<Seen<MatchingItems>> {
    let most = request.max_answer_bytes;
    let found = on_view(store, project, move |view| async move {
        let ids = match &request.wanted {
            DeleteTarget::Ids(ids) => view.live_ids(ids, most).await?,
            DeleteTarget::Matching(filter) => view.matching_ids(filter, most).await?,
        };
        Ok(MatchingItems {
            ids,
            version: view.sequence(),
        })
    });
    Ok(found.await?.or_default())
}

/// How much matches a filter.
pub(super) async fn matching_size(
    store: &Arc<Store>,
    project: &ProjectName,
    filter: &Filter,
) -> KnowledgeResult<Seen<MatchingSize>> {
    let found = on_view(store, project, move |view| async move {
        let (items, bytes) = view.matching_size(filter).await?;
        Ok(MatchingSize { items, bytes })
    });
    Ok(found.await?.or_default())
}

/// As [`on_view`], for a search over one project or several. Of several, those that cannot be searched are left out,
/// and `degraded` says which and why. Where there is more, the versions that it has read are kept for the next page.
pub(super) async fn search_projects(
    store: &Arc<Store>,
    projects: &Projects,
    request: &SearchRequest,
) -> KnowledgeResult<SearchOutcome> {
    let model = &store.config().model.name;
    let (mut views, mut left_out) = searchable_views(store, projects).await?;
    if request.at.is_none() {
        read_ahead(store, &views).await;
    }
    let mut searched = caught(search_in(store.pools(), &views, request, model)).await;
    if let Err(KnowledgeError::Unreadable { .. }) = &searched {
        if matches!(projects, Projects::At(_)) {
            // Another version is another search, and this one is gone.
            return Err(cursor_expired());
        }
        let words = (request.mode != SearchMode::Vector).then_some(request.query.as_str());
        let mut changed = false;
        for view in &views {
            changed |= reexamine(store, view, words).await;
        }
        if changed {
            (views, left_out) = searchable_views(store, projects).await?;
            searched = caught(search_in(store.pools(), &views, request, model)).await;
        }
    }
    if let Err(error) = &searched
        && views.len() > 1
        && is_of_a_project(error)
    {
        let (sound, failed) = searchable_alone(store, request, &views).await;
        if !sound.is_empty() {
            left_out.extend(failed);
            views = sound;
            searched = caught(search_in(store.pools(), &views, request, model)).await;
        }
    }
    let mut outcome = searched?;
    if !left_out.is_empty() {
        let reasons = outcome.degraded.take().into_iter().chain(left_out);
        outcome.degraded = Some(reasons.collect::<Vec<_>>().join("; "));
    }
    if outcome.more {
        for view in &views {
            store.keep_for_pages(view);
            outcome.page_versions.push(PageVersion {
                project: view.project().clone(),
                version: view.lance_version(),
                epoch: store.lineage(view.project())?.epoch,
            });
        }
    }
    Ok(outcome)
}

/// What a search finds by words, as far as it can be looked up before the query has a vector.
pub(super) async fn keywords_ahead(
    store: &Arc<Store>,
    projects: &Projects,
    request: &SearchRequest,
) -> KnowledgeResult<KeywordsAhead> {
    let look_up = async {
        match searchable_views(store, projects).await {
            Ok((views, _)) => KeywordsAhead::look_up(&views, request).await,
            Err(_) => KeywordsAhead::default(),
        }
    };
    // What fails here is tried again by the search, which reports it.
    Ok(panics::catch(look_up).await.unwrap_or_default())
}

/// Whether an error says something about a project, and not about the request or the daemon.
fn is_of_a_project(error: &KnowledgeError) -> bool {
    matches!(
        error,
        KnowledgeError::Unreadable { .. }
            | KnowledgeError::Internal { .. }
            | KnowledgeError::ModelMismatch { .. }
            | KnowledgeError::Expired { .. }
    )
}

fn left_out(project: &ProjectName, error: &KnowledgeError) -> String {
    format!("project {project} is left out: {error}")
}

/// Which of these views can be searched, and why the others cannot: each is searched by itself. Only where a search
/// over all of them has failed.
async fn searchable_alone(
    store: &Store,
    request: &SearchRequest,
    views: &[Arc<ProjectView>],
) -> (Vec<Arc<ProjectView>>, Vec<String>) {
    let (mut sound, mut failed) = (Vec::new(), Vec::new());
    for view in views {
        let alone = std::slice::from_ref(view);
        match caught(search(alone, request, &store.config().model.name)).await {
            Ok(_) => sound.push(Arc::clone(view)),
            Err(error) => failed.push(left_out(view.project(), &error)),
        }
    }
    (sound, failed)
}

fn cursor_expired() -> KnowledgeError {
    KnowledgeError::Expired {
        what: "the cursor".to_owned(),
    }
}

/// The views to search, and why projects are left out that cannot be opened. A project that does not exist has none;
/// of all projects, those of another shape are left out (they are shown by `projects`), while naming one is an error,
/// as is naming only what cannot be opened.
async fn searchable_views(
    store: &Arc<Store>,
    projects: &Projects,
) -> KnowledgeResult<(Vec<Arc<ProjectView>>, Vec<String>)> {
    let (mut views, mut failed) = (Vec::new(), Vec::new());
    let mut first_error = None;
    match projects {
        Projects::Named(names) => {
            let opened = side_by_side(names, |name| store.view(name)).await;
            for (name, opened) in names.iter().zip(opened) {
                match opened {
                    Ok(view) => views.extend(view),
                    Err(error) if names.len() > 1 && is_of_a_project(&error) => {
                        failed.push(left_out(name, &error));
                        first_error.get_or_insert(error);
                    }
                    // It is empty, and the answer says why.
                    Err(error) if store.lost(name).is_some() => failed.push(left_out(name, &error)),
                    Err(error) => return Err(error),
                }
            }
        }
        Projects::All => {
            let known = store.projects();
            let opened = side_by_side(&known, Project::view).await;
            for (project, opened) in known.iter().zip(opened) {
                match opened {
                    Ok(view) => views.extend(view.filter(|view| view.check_shape().is_ok())),
                    Err(error) => {
                        failed.push(left_out(project.name(), &error));
                        first_error.get_or_insert(error);
                    }
                }
            }
            for left in store.not_served().await {
                failed.push(format!("{} is left out: {}", left.project, left.reason));
            }
        }
        Projects::At(pages) => {
            for page in pages {
                views.push(store.page_view(page).await?.ok_or_else(cursor_expired)?);
            }
        }
    }
    match first_error {
        Some(error) if views.is_empty() => Err(error),
        _ => Ok((views, failed)),
    }
}

pub(super) async fn similar(
    store: &Store,
    project: &ProjectName,
    request: &Within<String>,
    limit: usize,
) -> KnowledgeResult<SearchOutcome> {
    let not_found = || KnowledgeError::NotFound {
        id: request.wanted.clone(),
        degraded: None,
    };
    let found = on_view(store, project, move |view| similar_in(view, request, limit));
    found.await?.found.flatten().ok_or_else(not_found)
}

/// None where the view has no such item.
async fn similar_in(
    view: Arc<ProjectView>,
    within: &Within<String>,
    limit: usize,
) -> KnowledgeResult<Option<SearchOutcome>> {
    let id = &within.wanted;
    let Some(vector) = view.item_vector(id).await? else {
        return Ok(None);
    };
    let request = SearchRequest {
        query: String::new(),
        vector: Some(vector),
        mode: SearchMode::Vector,
        filter: Filter::default(),
        // The item itself is the nearest of all.
        limit: limit + 1,
        offset: 0,
        threshold: None,
        min_similarity: -1.0,
        at: None,
        except: Some(id.clone()),
        text_budget: None,
        max_answer_bytes: within.max_answer_bytes,
        keywords_ahead: None,
    };
    // Vectors of one table come from one model, whichever that is.
    let model = match view.shape() {
        TableShape::Current { model } => model.clone(),
        TableShape::Foreign { .. } => String::new(),
    };
    let mut outcome = search(&[view], &request, &model).await?;
    outcome.hits.truncate(limit);
    Ok(Some(outcome))
}

/// Counts the items of each project, or of the `wanted` one. Upkeep that is to be done is measured only `with_debt`.
pub(super) async fn project_stats(
    store: &Arc<Store>,
    wanted: Option<ProjectName>,
    with_debt: bool,
) -> KnowledgeResult<StatsReport> {
    let mut report = StatsReport::default();
    let not_served = match &wanted {
        None => store.not_served().await,
        Some(_) => Vec::new(),
    };
    for left in &not_served {
        report.failed.push(FailedProject {
            project: left.project.clone(),
            is_project: left.is_project,
            bytes_on_disk: 0,
            error: left.error(),
        });
    }
    let is_wanted = |project: &Arc<Project>| {
        // Out of reach since it was opened.
        let is_left = not_served.iter().any(|left| left.project == project.name().as_str());
        !is_left && wanted.as_ref().is_none_or(|name| name == project.name())
    };
    let projects: Vec<Arc<Project>> = store.projects().into_iter().filter(is_wanted).collect();
    let counted = side_by_side(&projects, |project| stats_of(store, project, with_debt)).await;
    for (project, counted) in projects.iter().zip(counted) {
        match counted {
            Ok(counted) => report.projects.extend(counted),
            Err(error) if wanted.is_some() => return Err(error),
            Err(error) => report.failed.push(FailedProject {
                project: project.name().to_string(),
                is_project: true,
                bytes_on_disk: project.bytes_on_disk().await.unwrap_or(0),
                error,
            }),
        }
    }
    Ok(report)
}

async fn stats_of(store: &Store, project: &Arc<Project>, with_debt: bool) -> KnowledgeResult<Option<ProjectStats>> {
    if let Some(counts) = project.counts_at_rest() {
        return ProjectStats::of(project, counts, None).await.map(Some);
    }
    // Who watches the daemon keeps nothing open by it.
    let _look = project.look();
    // Where no version of it can be read, it has no counts.
    project.view().await?;
    let counted = on_view(store, project.name(), move |view| async move {
        let (model, needs_migration) = match view.shape() {
            TableShape::Current { model } => (Some(model.clone()), None),
            TableShape::Foreign { detail } => (None, Some(detail.clone())),
        };
        let counts = Counts {
            items: view.stats().await?,
            rows: view.row_count().await? as u64,
            debt: if with_debt { view.debt().await? } else { Debt::default() },
            version: view.sequence(),
            model,
            needs_migration,
        };
        // Without its debt it is not all that may be asked of it at rest.
        if with_debt {
            project.keep_counts(&counts);
        }
        ProjectStats::of(project, counts, view.degraded()).await
    });
    Ok(counted.await?.found)
}
