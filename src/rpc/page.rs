//! Cursors of `knowledge.search`: where a page ended, and of which search.
//!
//! A search is one sequence of results over fixed versions of its projects. The cursor names the versions and
//! the place, so that what is written meanwhile moves nothing: the next page reads the same versions, or the
//! cursor has expired.

use ccod_actors::domain::{ProjectName, SearchMode, hex, unhex};
use ccod_actors::reader::Projects;
use ccod_actors::store::view::search::PageVersion;
use ccod_protocol::api;
use ccod_protocol::error::WireError;
use sha2::{Digest, Sha256};

/// Bytes of the fingerprint of a search: enough that two searches do not share one by chance.
const FINGERPRINT_BYTES: usize = 12;
/// Begins every cursor, with the version of its format.
const PREFIX: &str = "s1";

/// Where a page of a search ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SearchCursor {
    /// What distinguishes this search from others.
    fingerprint: String,
    /// How it was really searched.
    mode: &'static str,
    /// Results so far.
    pub(crate) offset: u32,
    /// The versions that it reads.
    pub(crate) versions: Vec<PageVersion>,
}

/// What distinguishes a search from others: all of its parameters but those of the page.
pub(crate) fn fingerprint(params: &api::SearchParams, project: &ProjectName) -> String {
    let plain = api::SearchParams {
        limit: 0,
        offset: 0,
        cursor: None,
        budget_tokens: None,
        explain: false,
        ..params.clone()
    };
    // Parameters that came as JSON can be written as JSON.
    let json = serde_json::to_string(&plain).unwrap_or_default();
    let digest = Sha256::digest(format!("{project}\n{json}"));
    hex(&digest[..FINGERPRINT_BYTES])
}

impl SearchCursor {
    /// The cursor of the page that begins at `offset`.
    pub(crate) fn new(fingerprint: String, mode: SearchMode, offset: u32, versions: Vec<PageVersion>) -> Self {
        Self {
            fingerprint,
            mode: mode.as_str(),
            offset,
            versions,
        }
    }

    /// Opaque to callers: hexadecimal of a head and a `<project>/<version>/<epoch>` line for each project.
    pub(crate) fn encode(&self) -> String {
        let Self {
            fingerprint,
            mode,
            offset,
            versions,
        } = self;
        let mut plain = format!("{PREFIX}/{fingerprint}/{mode}/{offset}");
        for page in versions {
            plain.push_str(&format!("\n{}/{}/{}", page.project, page.version, page.epoch));
        }
        hex(plain.as_bytes())
    }

    fn decode(text: &str) -> Option<Self> {
        let plain = String::from_utf8(unhex(text)?).ok()?;
        let mut lines = plain.lines();
        let [prefix, fingerprint, mode, offset] = fields(lines.next()?)?;
        let modes = [SearchMode::Hybrid, SearchMode::Vector, SearchMode::Text];
        let versions = lines
            .map(|line| {
                let [project, version, epoch] = fields(line)?;
                Some(PageVersion {
                    project: ProjectName::parse(project, "cursor").ok()?,
                    version: version.parse().ok()?,
                    epoch: epoch.parse().ok()?,
                })
            })
            .collect::<Option<_>>()?;
        (prefix == PREFIX).then_some(())?;
        Some(Self {
            fingerprint: fingerprint.to_owned(),
            mode: modes.iter().map(|mode| mode.as_str()).find(|known| *known == mode)?,
            offset: offset.parse().ok()?,
            versions,
        })
    }

    /// Reads a cursor that a search with this fingerprint has given.
    ///
    /// # Errors
    /// -32602 for a cursor of another search and for what is not a cursor.
    pub(crate) fn of_search(text: &str, fingerprint: &str) -> Result<Self, WireError> {
        let cursor = Self::decode(text).ok_or_else(|| {
            WireError::invalid_params(
                "cursor",
                "`cursor` must be the `next_cursor` of a search; begin again without it",
            )
        })?;
        if cursor.fingerprint != fingerprint {
            return Err(of_another_search());
        }
        Ok(cursor)
    }

    /// Refuses a cursor that would read other projects than those that the call names.
    ///
    /// # Errors
    /// -32602.
    pub(crate) fn check_projects(&self, named: &Projects) -> Result<(), WireError> {
        match named {
            Projects::Named(names) if !self.versions.iter().all(|page| names.contains(&page.project)) => {
                Err(of_another_search())
            }
            _ => Ok(()),
        }
    }

    /// Refuses to continue in another mode: the embedder has failed since, or is back.
    ///
    /// # Errors
    /// -32028.
    pub(crate) fn check_mode(&self, mode: SearchMode) -> Result<(), WireError> {
        if self.mode == mode.as_str() {
            Ok(())
        } else {
            Err(WireError::expired("the cursor"))
        }
    }
}

fn of_another_search() -> WireError {
    WireError::invalid_params(
        "cursor",
        "`cursor` is of another search; repeat its parameters, or begin again without it",
    )
}

/// The parts of a line between slashes, if there are exactly `N`.
fn fields<const N: usize>(line: &str) -> Option<[&str; N]> {
    line.split('/').collect::<Vec<_>>().try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(query: &str) -> api::SearchParams {
        api::SearchParams {
            query: query.to_owned(),
            ..api::SearchParams::default()
        }
    }

    #[test]
    fn cursors_survive_the_wire_and_belong_to_one_search() {
        let page = |project: &str, version| PageVersion {
            project: ProjectName::parse(project, "project_id").unwrap(),
            version,
            epoch: 1_795_362_864_593,
        };
        let own = fingerprint(&params("a"), &ProjectName::default());
        for versions in [
            vec![],
            vec![page("default", 7)],
            vec![page("a.b-c_d", u64::MAX), page("b", 0)],
        ] {
            let cursor = SearchCursor::new(own.clone(), SearchMode::Text, 20, versions);
            let text = cursor.encode();
            assert_eq!(SearchCursor::of_search(&text, &own).unwrap(), cursor);
            cursor.check_mode(SearchMode::Text).unwrap();
            cursor.check_projects(&Projects::All).unwrap();
            let named = Projects::Named(cursor.versions.iter().map(|page| page.project.clone()).collect());
            cursor.check_projects(&named).unwrap();
            let others = Projects::Named(vec![ProjectName::parse("c", "project_id").unwrap()]);
            assert_eq!(cursor.check_projects(&others).is_err(), !cursor.versions.is_empty());
            assert_eq!(cursor.check_mode(SearchMode::Hybrid).unwrap_err().code, -32028);
            let other = fingerprint(&params("b"), &ProjectName::default());
            assert_eq!(SearchCursor::of_search(&text, &other).unwrap_err().code, -32602);
        }
        for bad in [
            "",
            "zz",
            "ä",
            "6e31",
            &hex(b"s2/f/text/1"),
            &hex(b"s1/f/other/1"),
            &hex(b"s1/f/text/-1"),
        ] {
            assert!(SearchCursor::decode(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn the_page_is_no_part_of_the_fingerprint_and_all_else_is() {
        let project = ProjectName::default();
        let of = |params: &api::SearchParams| fingerprint(params, &project);
        let plain = params("a");
        let pages = [
            api::SearchParams {
                limit: 50,
                ..plain.clone()
            },
            api::SearchParams {
                offset: 7,
                ..plain.clone()
            },
            api::SearchParams {
                explain: true,
                budget_tokens: Some(9),
                cursor: Some("x".to_owned()),
                ..plain.clone()
            },
        ];
        for page in &pages {
            assert_eq!(of(page), of(&plain));
        }
        let others = [
            api::SearchParams {
                mode: api::SearchMode::Text,
                ..plain.clone()
            },
            api::SearchParams {
                threshold: Some(0.5),
                ..plain.clone()
            },
            api::SearchParams {
                as_of: Some(api::AsOf::Version(3)),
                ..plain.clone()
            },
            params("b"),
        ];
        for other in &others {
            assert_ne!(of(other), of(&plain));
        }
        assert_ne!(
            fingerprint(&plain, &ProjectName::parse("b", "project_id").unwrap()),
            of(&plain)
        );
    }
}
