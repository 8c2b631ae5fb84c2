//! Where a feed stands, as its subscriber keeps it.
//!
//! A cursor names the newest commit that was sent of each project. Of few projects it says so itself. Of many that would
//! be tens of kilobytes in each notification: then it names a bookmark, which has them on disk
//! ([`crate::store::bookmarks`]), and only the few projects in which the feed has gone on since.

use std::collections::BTreeSet;

use crate::domain::{ProjectName, hex, unhex};
use crate::store::bookmarks::{Bookmark, Positions};

/// Bytes up to which a cursor names all projects itself.
const NAMED_BYTES: usize = 256;
/// Projects that a cursor names besides its bookmark, at most.
const NAMED_BESIDES: usize = 4;
/// Begins the line with a bookmark: no name of a project begins so.
const BOOKMARK: char = '*';

/// Where a feed stands: the newest commit that was sent, of each project.
#[derive(Clone, Debug, Default)]
pub(super) struct Cursor {
    positions: Positions,
    bookmark: Option<Bookmark>,
    /// The projects in which it stands elsewhere than the bookmark says.
    besides: BTreeSet<String>,
    /// Whether it gets no bookmark.
    stays_long: bool,
}

/// Where a feed stands in one project: at a commit of one of its histories ([`crate::store::Lineage::epoch`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) commit: i64,
    pub(super) epoch: i64,
}

/// A cursor as a subscriber has sent it.
#[derive(Clone, Debug, Default)]
pub(super) struct Sent {
    /// Has the positions that are not in `named`.
    pub(super) bookmark: Option<Bookmark>,
    named: Positions,
}

impl Sent {
    /// The inverse of [`Cursor::encode`].
    pub(super) fn decode(text: &str) -> Option<Self> {
        let plain = String::from_utf8(unhex(text)?).ok()?;
        let mut sent = Self::default();
        for line in plain.lines().filter(|line| !line.is_empty()) {
            if let Some(bookmark) = line.strip_prefix(BOOKMARK) {
                if sent.bookmark.replace(Bookmark::parse(bookmark)?).is_some() {
                    return None;
                }
                continue;
            }
            let mut parts = line.split('/');
            let project = parts.next()?.to_owned();
            let commit = parts.next()?.parse().ok()?;
            let epoch = parts.next().map_or(Some(0), |epoch| epoch.parse().ok())?;
            if parts.next().is_some() {
                return None;
            }
            sent.named.insert(project, (commit, epoch));
        }
        Some(sent)
    }

    /// The cursor, with the positions of its bookmark.
    pub(super) fn into_cursor(self, marked: Positions) -> Cursor {
        let besides = match self.bookmark {
            Some(_) => self.named.keys().cloned().collect(),
            None => BTreeSet::new(),
        };
        let mut positions = marked;
        positions.extend(self.named);
        Cursor {
            positions,
            bookmark: self.bookmark,
            besides,
            stays_long: false,
        }
    }
}

impl Cursor {
    /// Opaque to callers: hexadecimal of `<project>/<commit>` lines, with `/<epoch>` where a project was restored; and of
    /// a line with the bookmark, where there is one.
    pub(super) fn encode(&self) -> String {
        let plain = match (&self.bookmark, self.is_long()) {
            (Some(bookmark), true) => {
                let named = self.besides.iter().filter_map(|project| {
                    let position = self.positions.get_key_value(project)?;
                    Some(line(position))
                });
                let lines: Vec<String> = std::iter::once(format!("{BOOKMARK}{}", bookmark.text()))
                    .chain(named)
                    .collect();
                lines.join("\n")
            }
            // Of a daemon without projects it is a cursor too, and no empty one: an empty one is what somebody has who
            // has lost it.
            _ if self.positions.is_empty() => "\n".to_owned(),
            _ => self.positions.iter().map(line).collect::<Vec<_>>().join("\n"),
        };
        hex(plain.as_bytes())
    }

    /// Whether it is too long without another bookmark; then the bookmark before, and what differs from it.
    pub(super) fn lacks_bookmark(&self) -> Option<(Option<Bookmark>, Vec<String>)> {
        let has_one = self.bookmark.is_some() && self.besides.len() <= NAMED_BESIDES;
        (!self.stays_long && !has_one && self.is_long())
            .then(|| (self.bookmark.clone(), self.besides.iter().cloned().collect()))
    }

    /// Its positions are those of this bookmark.
    pub(super) fn set_bookmark(&mut self, bookmark: Bookmark) {
        self.bookmark = Some(bookmark);
        self.besides.clear();
    }

    /// From now on it names all projects itself: bookmarks cannot be saved.
    pub(super) fn stay_long(&mut self) {
        self.stays_long = true;
        self.bookmark = None;
        self.besides.clear();
    }

    pub(super) fn positions(&self) -> &Positions {
        &self.positions
    }

    fn is_long(&self) -> bool {
        let mut bytes = 0;
        self.positions.iter().any(|position| {
            bytes += line(position).len() + 1;
            bytes > NAMED_BYTES
        })
    }

    pub(super) fn of(&self, project: &ProjectName) -> Position {
        let position = self.positions.get(project.as_str());
        position.map_or_else(Position::default, |(commit, epoch)| Position {
            commit: *commit,
            epoch: *epoch,
        })
    }

    pub(super) fn advance(&mut self, project: &ProjectName, commit: i64, epoch: i64) {
        let before = self.positions.insert(project.to_string(), (commit, epoch));
        if self.bookmark.is_some() && before != Some((commit, epoch)) {
            self.besides.insert(project.to_string());
        }
    }
}

fn line((project, position): (&String, &(i64, i64))) -> String {
    match position {
        (commit, 0) => format!("{project}/{commit}"),
        (commit, epoch) => format!("{project}/{commit}/{epoch}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn name(name: &str) -> ProjectName {
        ProjectName::parse(name, "project_id").unwrap()
    }

    fn decoded(text: &str) -> Positions {
        let sent = Sent::decode(text).unwrap();
        assert_eq!(sent.bookmark, None);
        sent.into_cursor(BTreeMap::new()).positions
    }

    #[test]
    fn cursors_survive_the_wire() {
        let mut cursor = Cursor::default();
        assert!(!cursor.encode().is_empty());
        assert_eq!(decoded(&cursor.encode()), cursor.positions);
        for (project, commit) in [("default", 7), ("a.b-c_d", i64::MAX)] {
            cursor.advance(&name(project), commit, 0);
        }
        cursor.advance(&name("web"), 9, 1_795_362_864_593);
        assert_eq!(decoded(&cursor.encode()), cursor.positions);
        assert!(cursor.lacks_bookmark().is_none());
        // As subscribers have kept it.
        let kept = decoded("64656661756c742f380a6f6e652d6c696e6572732f31");
        assert_eq!(
            kept,
            BTreeMap::from([("default".to_owned(), (8, 0)), ("one-liners".to_owned(), (1, 0))])
        );
        for bad in [
            "zz",
            "616",
            "ä",
            "6161",
            &hex(b"*1/2\n*1/3"),
            &hex(b"*1"),
            &hex(b"a/1/2/3"),
        ] {
            assert!(Sent::decode(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn of_many_projects_only_those_are_named_that_differ_from_the_bookmark() {
        let mut cursor = Cursor::default();
        for number in 0..1_000 {
            cursor.advance(&name(&format!("project-{number:04}")), number + 1, 0);
        }
        // Without one it names them all, which nobody has refused so far.
        assert_eq!(decoded(&cursor.encode()), cursor.positions);
        assert!(cursor.encode().len() > 20_000);
        let (before, changed) = cursor.lacks_bookmark().unwrap();
        assert_eq!((before, changed.len()), (None, 0));
        let bookmark = Bookmark::parse("123456789abcdef0/fffff").unwrap();
        let marked = cursor.positions.clone();
        cursor.set_bookmark(bookmark.clone());
        for number in 0..NAMED_BESIDES as i64 {
            cursor.advance(&name(&format!("project-{number:04}")), 2_000, 1_795_362_864_593);
            // A commit that was seen before changes nothing.
            cursor.advance(&name("project-0999"), 1_000, 0);
            let text = cursor.encode();
            assert!(text.len() < 400, "{}", text.len());
            let sent = Sent::decode(&text).unwrap();
            assert_eq!(sent.bookmark, Some(bookmark.clone()));
            let again = sent.into_cursor(marked.clone());
            assert_eq!((&again.positions, &again.besides), (&cursor.positions, &cursor.besides));
            assert!(cursor.lacks_bookmark().is_none());
        }
        cursor.advance(&name("new"), 1, 0);
        let (before, changed) = cursor.lacks_bookmark().unwrap();
        assert_eq!((before, changed.len()), (Some(bookmark), NAMED_BESIDES + 1));
    }
}
