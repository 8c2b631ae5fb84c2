//! Who waits for changes, and of which projects.
//!
//! A feed has an inbox with the names of the projects that have changed since it last looked. A commit puts its
//! project's name into the inboxes of those feeds that listen to it, and wakes no other. An inbox never holds more than
//! a name for each project, however slow its feed is.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::domain::ProjectName;

/// All that listen.
#[derive(Debug, Default)]
pub(in crate::store) struct Listeners(Mutex<Registry>);

#[derive(Debug, Default)]
struct Registry {
    to_every: Vec<Arc<Inbox>>,
    to_one: HashMap<ProjectName, Vec<Arc<Inbox>>>,
}

#[derive(Debug, Default)]
struct Inbox {
    changed: Mutex<BTreeSet<ProjectName>>,
    arrived: Notify,
}

/// Learns which projects change, until it is dropped.
#[derive(Debug)]
pub struct Listener {
    listeners: Arc<Listeners>,
    inbox: Arc<Inbox>,
    /// None: to every project.
    to: Option<ProjectName>,
}

impl Listeners {
    /// Listens to a project, or to all of them, from now on.
    pub(in crate::store) fn listen(self: &Arc<Self>, to: Option<ProjectName>) -> Listener {
        let inbox = Arc::new(Inbox::default());
        let mut registry = self.0.lock();
        match &to {
            None => registry.to_every.push(Arc::clone(&inbox)),
            Some(project) => {
                let of_project = registry.to_one.entry(project.clone()).or_default();
                of_project.push(Arc::clone(&inbox));
            }
        }
        drop(registry);
        Listener {
            listeners: Arc::clone(self),
            inbox,
            to,
        }
    }

    /// A project has changed.
    pub(in crate::store) fn tell(&self, project: &ProjectName) {
        let inboxes: Vec<Arc<Inbox>> = {
            let registry = self.0.lock();
            let of_project = registry.to_one.get(project).into_iter().flatten();
            registry.to_every.iter().chain(of_project).cloned().collect()
        };
        for inbox in inboxes {
            inbox.changed.lock().insert(project.clone());
            inbox.arrived.notify_one();
        }
    }
}

impl Listener {
    /// The projects that have changed since this was last asked; waits until one has. Loses nothing where it is given
    /// up before it is done.
    pub async fn changed(&self) -> BTreeSet<ProjectName> {
        loop {
            let arrived = self.inbox.arrived.notified();
            let changed = std::mem::take(&mut *self.inbox.changed.lock());
            if !changed.is_empty() {
                return changed;
            }
            arrived.await;
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut registry = self.listeners.0.lock();
        let others = |inboxes: &mut Vec<Arc<Inbox>>| inboxes.retain(|inbox| !Arc::ptr_eq(inbox, &self.inbox));
        match &self.to {
            None => others(&mut registry.to_every),
            Some(project) => {
                if let Some(inboxes) = registry.to_one.get_mut(project) {
                    others(inboxes);
                    if inboxes.is_empty() {
                        registry.to_one.remove(project);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn name(name: &str) -> ProjectName {
        ProjectName::parse(name, "project_id").unwrap()
    }

    fn heard(listener: &Listener) -> Option<Vec<String>> {
        let changed = listener.changed().now_or_never()?;
        Some(changed.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_change_wakes_those_that_listen_to_its_project_and_nobody_else() {
        let listeners = Arc::new(Listeners::default());
        let (web, api, every) = (
            listeners.listen(Some(name("web"))),
            listeners.listen(Some(name("api"))),
            listeners.listen(None),
        );
        assert_eq!((heard(&web), heard(&every)), (None, None));
        listeners.tell(&name("web"));
        listeners.tell(&name("web"));
        listeners.tell(&name("other"));
        assert_eq!(heard(&web).unwrap(), ["web"]);
        assert_eq!(heard(&api), None);
        assert_eq!(heard(&every).unwrap(), ["other", "web"]);
        assert_eq!((heard(&web), heard(&every)), (None, None));
        drop((web, every));
        listeners.tell(&name("web"));
        listeners.tell(&name("api"));
        assert_eq!(heard(&api).unwrap(), ["api"]);
        drop(api);
        let registry = listeners.0.lock();
        assert!(registry.to_every.is_empty() && registry.to_one.is_empty());
    }

    #[tokio::test]
    async fn who_waits_is_woken_also_if_it_was_given_up_before() {
        let listeners = Arc::new(Listeners::default());
        let listener = listeners.listen(Some(name("web")));
        assert_eq!(heard(&listener), None);
        let (told, ()) = tokio::join!(listener.changed(), async {
            tokio::task::yield_now().await;
            listeners.tell(&name("web"));
        });
        assert_eq!(told, BTreeSet::from([name("web")]));
    }
}
