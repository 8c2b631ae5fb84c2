//! What was asked, what was answered, and what must therefore be there. Pure.
//!
//! Every item has a number of its own and every write to it another one; both stand in its metadata, so that
//! whatever is found later says which write made it. A client has at most one request under way, so after a
//! crash at most its last request is open: that one happened as a whole or not at all, and everything before it
//! happened.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

/// What one write made of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    /// The number of the write: no two writes share one.
    pub(crate) write: u64,
    /// The item's text.
    pub(crate) text: Arc<str>,
}

/// What an item is, after a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Never stored.
    Absent,
    /// There, with this content.
    Live(Content),
    /// Deleted; this is what comes back if it is undeleted.
    Deleted(Content),
    /// Gone with all its revisions.
    Purged,
}

impl State {
    /// What a reader sees of it.
    pub(crate) fn visible(&self) -> Option<&Content> {
        match self {
            Self::Live(content) => Some(content),
            Self::Absent | Self::Deleted(_) | Self::Purged => None,
        }
    }
}

/// An item as its client knows it.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    /// The project it lies in.
    pub(crate) project: String,
    /// Its id, once it is known: given, or answered.
    pub(crate) id: Option<String>,
    /// The session it was stored with; deletes by filter name it.
    pub(crate) session: String,
    /// What it is after the last request that was answered.
    pub(crate) state: State,
    /// Every write that it has had, open ones included.
    pub(crate) writes: Vec<u64>,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Sent; the connection ended before the answer.
    Open,
    /// Answered with a result.
    Acknowledged,
}

/// One write, as it was sent.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Its number, of which no two clients use the same.
    pub(crate) number: u64,
    /// The kind of write, as the load names it.
    pub(crate) operation: &'static str,
    /// The method.
    pub(crate) method: &'static str,
    /// The project.
    pub(crate) project: String,
    /// The parameters, complete.
    pub(crate) params: Value,
    /// What it makes of which items.
    pub(crate) changes: Vec<(u64, State)>,
    /// Whether its changes are one commit: all of them or none.
    pub(crate) whole: bool,
    /// What became of it.
    pub(crate) outcome: Outcome,
}

impl Request {
    /// Its id in JSON-RPC.
    pub(crate) fn wire_id(&self) -> String {
        format!("w{}", self.number)
    }
}

/// Everything that one client has asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Journal {
    /// Its items, by number.
    pub(crate) items: BTreeMap<u64, Item>,
    /// Its requests, in order.
    pub(crate) requests: Vec<Request>,
}

/// What must be there of one item.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Expected {
    /// Its project.
    pub(crate) project: String,
    /// Its id, if it is known.
    pub(crate) id: Option<String>,
    /// What the answered requests made of it.
    pub(crate) settled: State,
    /// What the open request made of it, if it happened.
    pub(crate) possible: Option<State>,
    /// Every write that it has had.
    pub(crate) writes: Vec<u64>,
}

/// What must be there after a crash.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expectation {
    /// By item number.
    pub(crate) items: BTreeMap<u64, Expected>,
    /// The items of each open request that is one commit, with the request's name.
    pub(crate) wholes: Vec<(&'static str, Vec<u64>)>,
}

/// A live item as it was found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Found {
    /// Its project.
    pub(crate) project: String,
    /// Its id.
    pub(crate) id: String,
    /// Its number, from its metadata.
    pub(crate) item: u64,
    /// The number of the write that made it, from its metadata.
    pub(crate) write: u64,
    /// Its text.
    pub(crate) text: String,
}

/// What a comparison found out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Comparison {
    /// What is wrong, in words.
    pub(crate) violations: Vec<String>,
    /// Items of which an answered request says what they must be.
    pub(crate) settled: usize,
    /// Items of an open request that had happened.
    pub(crate) applied: usize,
    /// Items of an open request that had not.
    pub(crate) not_applied: usize,
}

impl Found {
    /// Reads an item of `knowledge.list` or `knowledge.get`.
    pub(crate) fn from_wire(item: &Value) -> Result<Self, String> {
        let text = |name: &str| {
            item[name]
                .as_str()
                .map(str::to_owned)
                .ok_or_else(|| format!("an item without {name}: {item}"))
        };
        let number = |name: &str| {
            item["metadata"][name]
                .as_u64()
                .ok_or_else(|| format!("an item that no request has stored: {item}"))
        };
        Ok(Self {
            project: text("project_id")?,
            id: text("id")?,
            item: number("item")?,
            write: number("write")?,
            text: text("text")?,
        })
    }
}

/// The metadata of an item: what it is recognised by.
pub(crate) fn metadata(item: u64, write: u64) -> Map<String, Value> {
    match json!({"item": item, "write": write}) {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

impl Journal {
    /// What must be there if exactly the requests for which `answered` holds had been answered. Requests after
    /// the first unanswered one were not sent yet at that moment.
    pub(crate) fn expectation(&self, answered: impl Fn(&Request) -> bool) -> Expectation {
        let mut expectation = Expectation::default();
        for (number, item) in &self.items {
            expectation.items.insert(
                *number,
                Expected {
                    project: item.project.clone(),
                    id: item.id.clone(),
                    settled: State::Absent,
                    possible: None,
                    writes: item.writes.clone(),
                },
            );
        }
        for request in &self.requests {
            let done = answered(request);
            for (number, after) in &request.changes {
                let Some(expected) = expectation.items.get_mut(number) else {
                    continue;
                };
                if done {
                    expected.settled = after.clone();
                } else {
                    expected.possible = Some(after.clone());
                }
            }
            if !done {
                if request.whole && request.changes.len() > 1 {
                    let items = request.changes.iter().map(|(number, _)| *number).collect();
                    expectation.wholes.push((request.operation, items));
                }
                break;
            }
        }
        expectation
    }

    /// What must be there now.
    pub(crate) fn present(&self) -> Expectation {
        self.expectation(|request| request.outcome == Outcome::Acknowledged)
    }

    /// The request that was not answered, if there is one. It is the last.
    pub(crate) fn open_request(&self) -> Option<usize> {
        let last = self.requests.len().checked_sub(1)?;
        (self.requests[last].outcome == Outcome::Open).then_some(last)
    }

    /// Notes that a request was answered: what it makes of its items is what they are.
    pub(crate) fn acknowledge(&mut self, index: usize) {
        self.requests[index].outcome = Outcome::Acknowledged;
        for (number, after) in self.requests[index].changes.clone() {
            if let Some(item) = self.items.get_mut(&number) {
                item.state = after;
            }
        }
    }
}

impl Expectation {
    /// Joins what several clients expect; no item belongs to two of them.
    pub(crate) fn merge(expectations: impl IntoIterator<Item = Self>) -> Self {
        let mut merged = Self::default();
        for expectation in expectations {
            merged.items.extend(expectation.items);
            merged.wholes.extend(expectation.wholes);
        }
        merged
    }

    /// The projects of the items, each once.
    pub(crate) fn projects(&self) -> Vec<String> {
        let mut projects: Vec<String> = self.items.values().map(|expected| expected.project.clone()).collect();
        projects.sort();
        projects.dedup();
        projects
    }

    /// Compares all live items that were found with what must be there.
    pub(crate) fn compare(&self, found: &[Found]) -> Comparison {
        let mut comparison = Comparison::default();
        let mut by_item: BTreeMap<u64, Vec<&Found>> = BTreeMap::new();
        for item in found {
            by_item.entry(item.item).or_default().push(item);
        }
        for (number, items) in &by_item {
            match self.items.get(number) {
                None => comparison
                    .violations
                    .push(format!("an item that was never stored: {:?}", items[0])),
                Some(_) if items.len() > 1 => comparison
                    .violations
                    .push(format!("item {number} is there {} times: {items:?}", items.len())),
                Some(expected) => {
                    let item = items[0];
                    if item.project != expected.project {
                        comparison
                            .violations
                            .push(format!("item {number} is in the wrong project: {item:?}"));
                    }
                    if expected.id.as_ref().is_some_and(|id| *id != item.id) {
                        comparison.violations.push(format!(
                            "item {number} has id {} and was acknowledged as {:?}",
                            item.id, expected.id
                        ));
                    }
                }
            }
        }
        let seen = |number: &u64| by_item.get(number).map(|items| items[0]);
        let is = |number: &u64, state: &State| match (state.visible(), seen(number)) {
            (None, None) => true,
            (Some(content), Some(item)) => content.write == item.write && *content.text == *item.text,
            _ => false,
        };
        for (number, expected) in &self.items {
            match &expected.possible {
                None => {
                    if is(number, &expected.settled) {
                        comparison.settled += usize::from(expected.settled != State::Absent);
                    } else {
                        comparison.violations.push(format!(
                            "item {number} of {} must be {:?} and is {:?}",
                            expected.project,
                            expected.settled,
                            seen(number)
                        ));
                    }
                }
                Some(possible) => {
                    if is(number, possible) {
                        comparison.applied += 1;
                    } else if is(number, &expected.settled) {
                        comparison.not_applied += 1;
                    } else {
                        comparison.violations.push(format!(
                            "item {number} of {} must be {:?} or {possible:?} and is {:?}",
                            expected.project,
                            expected.settled,
                            seen(number)
                        ));
                    }
                }
            }
        }
        for (operation, numbers) in &self.wholes {
            // What looks the same before and after says nothing about the others.
            let mut answers = numbers.iter().filter_map(|number| {
                let expected = self.items.get(number)?;
                let possible = expected.possible.as_ref()?;
                (possible.visible() != expected.settled.visible()).then(|| is(number, possible))
            });
            if let Some(first) = answers.next()
                && answers.any(|answer| answer != first)
            {
                comparison
                    .violations
                    .push(format!("an unanswered {operation} happened in part: items {numbers:?}"));
            }
        }
        comparison
    }

    /// Whether the open request had happened, for a client whose request is open; none where it cannot be told.
    pub(crate) fn had_happened(&self, found: &[Found]) -> Option<bool> {
        let mut answer = None;
        for (number, expected) in &self.items {
            let Some(possible) = &expected.possible else { continue };
            if possible.visible() == expected.settled.visible() {
                continue;
            }
            let item = found.iter().find(|item| item.item == *number);
            let happened = match (possible.visible(), item) {
                (None, None) => true,
                (Some(content), Some(item)) => content.write == item.write,
                _ => false,
            };
            answer = Some(answer.unwrap_or(true) && happened);
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(write: u64) -> Content {
        Content {
            write,
            text: format!("text {write}").into(),
        }
    }

    fn journal(requests: Vec<(Vec<(u64, State)>, Outcome)>) -> Journal {
        let mut journal = Journal::default();
        for (index, (changes, outcome)) in requests.into_iter().enumerate() {
            for (number, _) in &changes {
                journal.items.entry(*number).or_insert(Item {
                    project: "p".to_owned(),
                    id: None,
                    session: "s".to_owned(),
                    state: State::Absent,
                    writes: Vec::new(),
                });
            }
            journal.requests.push(Request {
                number: index as u64,
                operation: "test",
                method: "test",
                project: "p".to_owned(),
                params: Value::Null,
                whole: true,
                changes,
                outcome,
            });
        }
        journal
    }

    fn found(item: u64, write: u64) -> Found {
        Found {
            project: "p".to_owned(),
            id: format!("id-{item}"),
            item,
            write,
            text: format!("text {write}"),
        }
    }

    #[test]
    fn what_was_answered_must_be_there_and_what_was_not_may_be() {
        let journal = journal(vec![
            (vec![(1, State::Live(content(1)))], Outcome::Acknowledged),
            (vec![(2, State::Live(content(2)))], Outcome::Acknowledged),
            (vec![(1, State::Deleted(content(1)))], Outcome::Acknowledged),
            (vec![(2, State::Live(content(3)))], Outcome::Open),
        ]);
        let expectation = journal.present();
        for (found, violations) in [
            (vec![found(2, 2)], 0),
            (vec![found(2, 3)], 0),
            (vec![], 1),                         // lost
            (vec![found(2, 4)], 1),              // other content
            (vec![found(2, 2), found(2, 2)], 1), // doubled
            (vec![found(1, 1), found(2, 2)], 1), // a delete undone
            (vec![found(2, 2), found(9, 9)], 1), // a stranger
        ] {
            let compared = expectation.compare(&found);
            assert_eq!(compared.violations.len(), violations, "{found:?}: {compared:?}");
        }
        assert_eq!(expectation.had_happened(&[found(2, 3)]), Some(true));
        assert_eq!(expectation.had_happened(&[found(2, 2)]), Some(false));
    }

    #[test]
    fn an_open_request_happens_as_a_whole() {
        let journal = journal(vec![
            (
                vec![(1, State::Live(content(1))), (2, State::Live(content(2)))],
                Outcome::Acknowledged,
            ),
            (
                vec![(1, State::Deleted(content(1))), (2, State::Deleted(content(2)))],
                Outcome::Open,
            ),
        ]);
        let expectation = journal.present();
        assert!(expectation.compare(&[]).violations.is_empty());
        assert!(expectation.compare(&[found(1, 1), found(2, 2)]).violations.is_empty());
        assert_eq!(expectation.compare(&[found(2, 2)]).violations.len(), 1);
    }

    #[test]
    fn what_had_not_been_sent_yet_is_not_expected() {
        let journal = journal(vec![
            (vec![(1, State::Live(content(1)))], Outcome::Acknowledged),
            (vec![(2, State::Live(content(2)))], Outcome::Acknowledged),
        ]);
        let earlier = journal.expectation(|_| false);
        assert!(earlier.compare(&[]).violations.is_empty());
        assert!(earlier.compare(&[found(1, 1)]).violations.is_empty());
        assert_eq!(earlier.compare(&[found(2, 2)]).violations.len(), 1);
    }
}
