//! What follows what: deltas in the order of their states.
//!
//! Pure. Guarantees: a delta follows another only if its base has the id of the other's target; every delta is in
//! exactly one segment; where there is one segment and nothing else is said, the deltas are a chain.

use crate::delta::header::{Header, State};
use crate::record::shown;

/// A delta as a link of a chain.
#[derive(Clone, Copy, Debug)]
pub struct Link<'a> {
    /// The file.
    pub name: &'a str,
    /// Its header.
    pub header: &'a Header,
}

impl<'a> Link<'a> {
    fn base(&self) -> Option<&'a str> {
        self.header.base.as_ref().map(|state| state.id.as_str())
    }

    fn target(&self) -> Option<&'a str> {
        self.header.target.as_ref().map(|state| state.id.as_str())
    }
}

/// How some deltas follow each other. Numbers are places in the list that was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chains {
    /// Deltas that follow each other without a gap, a fork or a circle in between.
    pub segments: Vec<Vec<usize>>,
    /// Several deltas that begin from one state, or lead to one.
    pub forks: Vec<Fork>,
    /// The segments whose end is their beginning.
    pub circles: Vec<usize>,
}

/// Several deltas where a chain has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fork {
    /// They begin from one state; otherwise they lead to one.
    pub begin: bool,
    /// Which they are.
    pub deltas: Vec<usize>,
}

impl Chains {
    /// Finds out how `links` follow each other.
    pub fn of(links: &[Link<'_>]) -> Self {
        let forks = forks(links);
        let next = |from: usize| {
            let target = links[from].target()?;
            let mut found = (0..links.len()).filter(|to| links[*to].base() == Some(target));
            let only = found.next().filter(|_| found.next().is_none())?;
            // Where two lead there it is not known which of them comes before.
            let reaches = |link: &&Link<'_>| link.target() == Some(target);
            (links.iter().filter(reaches).count() == 1).then_some(only)
        };
        let next: Vec<Option<usize>> = (0..links.len()).map(next).collect();
        let mut is_begun = vec![false; links.len()];
        let mut segments = Vec::new();
        let mut circles = Vec::new();
        let heads = (0..links.len()).filter(|link| !next.contains(&Some(*link)));
        // What no head leads to goes round in a circle.
        for head in heads.chain(0..links.len()) {
            let mut segment = Vec::new();
            let mut at = Some(head);
            while let Some(link) = at.filter(|link| !is_begun[*link]) {
                is_begun[link] = true;
                segment.push(link);
                at = next[link];
            }
            if segment.is_empty() {
                continue;
            }
            if at == Some(head) {
                circles.push(segments.len());
            }
            segments.push(segment);
        }
        let mut chains = Self {
            segments,
            forks,
            circles,
        };
        chains.sort(links);
        chains
    }

    /// Older ones first, as far as the times in the headers say.
    fn sort(&mut self, links: &[Link<'_>]) {
        let is_circle: Vec<bool> = (0..self.segments.len())
            .map(|segment| self.circles.contains(&segment))
            .collect();
        let mut numbered: Vec<usize> = (0..self.segments.len()).collect();
        numbered.sort_by_key(|segment| {
            let first = self.segments[*segment].first().copied().unwrap_or(0);
            (links[first].header.created, first)
        });
        let place = |(new, old): (usize, &usize)| is_circle[*old].then_some(new);
        self.circles = numbered.iter().enumerate().filter_map(place).collect();
        self.segments = numbered
            .iter()
            .map(|segment| std::mem::take(&mut self.segments[*segment]))
            .collect();
    }

    /// The order of the deltas if they are one chain.
    pub fn only(&self) -> Option<&[usize]> {
        let is_plain = self.forks.is_empty() && self.circles.is_empty();
        match &self.segments[..] {
            [only] if is_plain => Some(only),
            _ => None,
        }
    }

    /// All deltas, segment after segment.
    pub fn order(&self) -> impl Iterator<Item = usize> + '_ {
        self.segments.iter().flatten().copied()
    }

    /// What keeps them from being one chain, a sentence each; nothing if they are one.
    pub fn faults(&self, links: &[Link<'_>]) -> Vec<String> {
        let mut faults = self.gaps(links);
        faults.extend(self.forks.iter().map(|fork| fork.sentence(links)));
        for circle in &self.circles {
            let names = names(links, &self.segments[*circle]);
            faults.push(format!(
                "{names} go round in a circle: no state is the first"
            ));
        }
        faults
    }

    /// Between two segments that no fork has parted there is something missing.
    pub fn gaps(&self, links: &[Link<'_>]) -> Vec<String> {
        let pair = |pair: &[Vec<usize>]| {
            let (before, after) = (links[*pair[0].last()?], links[*pair[1].first()?]);
            let (target, base) = (before.target(), after.base());
            let is_parted = |fork: &Fork| {
                let id = fork.state(links).map(|state| state.id.as_str());
                id.is_some() && (id == target || id == base)
            };
            if self.forks.iter().any(is_parted) {
                return None;
            }
            Some(missing(before, after))
        };
        self.segments.windows(2).filter_map(pair).collect()
    }
}

impl Fork {
    /// The state in question.
    fn state<'a>(&self, links: &[Link<'a>]) -> Option<&'a State> {
        let header = links[*self.deltas.first()?].header;
        if self.begin {
            header.base.as_ref()
        } else {
            header.target.as_ref()
        }
    }

    /// In words.
    pub fn sentence(&self, links: &[Link<'_>]) -> String {
        let names = names(links, &self.deltas);
        let state = shown(self.state(links));
        let do_what = if self.begin { "begin from" } else { "lead to" };
        format!("{names} all {do_what} {state}").replace(
            "all ",
            if self.deltas.len() == 2 {
                "both "
            } else {
                "all "
            },
        )
    }
}

fn names(links: &[Link<'_>], which: &[usize]) -> String {
    let names: Vec<&str> = which.iter().map(|link| links[*link].name).collect();
    match &names[..] {
        [names @ .., last] if !names.is_empty() => format!("{} and {last}", names.join(", ")),
        _ => names.concat(),
    }
}

fn missing(before: Link<'_>, after: Link<'_>) -> String {
    let (name, next) = (before.name, after.name);
    match (&before.header.target, &after.header.base) {
        (None, _) => format!(
            "nothing can follow {name}: it does not name the state that it leads to; {next} is another piece"
        ),
        (_, None) if after.header.is_full_copy() => format!(
            "{next} is a full copy, which follows nothing; {name} is another piece, and leads to {}",
            shown(before.header.target.as_ref())
        ),
        (_, None) => format!(
            "{next} does not name the state that it begins from, so nothing can come before it; {name} is another \
             piece"
        ),
        (target, base) => format!(
            "a link is missing between {name} and {next}: from {} to {}",
            shown(target.as_ref()),
            shown(base.as_ref())
        ),
    }
}

fn forks(links: &[Link<'_>]) -> Vec<Fork> {
    let mut forks = Vec::new();
    for begin in [true, false] {
        let id = |link: &Link<'_>| match begin {
            true => link.header.base.as_ref().map(|state| state.id.clone()),
            false => link.header.target.as_ref().map(|state| state.id.clone()),
        };
        let mut by_state: std::collections::BTreeMap<String, Vec<usize>> = Default::default();
        for (number, link) in links.iter().enumerate() {
            if let Some(id) = id(link) {
                by_state.entry(id).or_default().push(number);
            }
        }
        let several = by_state.into_values().filter(|deltas| deltas.len() > 1);
        forks.extend(several.map(|deltas| Fork { begin, deltas }));
    }
    forks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::header::Source;
    use crate::delta::header::tests::header;

    fn link(base: &str, target: &str) -> Header {
        let state = |id: &str| {
            (!id.is_empty()).then(|| State {
                id: id.to_owned(),
                name: String::new(),
            })
        };
        let mut header = Header {
            base: state(base),
            target: state(target),
            ..header(4096)
        };
        if base == "full" {
            header.base = None;
            header.source = Source::Full;
        }
        header
    }

    fn chains(pairs: &[(&str, &str)]) -> (Chains, Vec<String>) {
        let headers: Vec<Header> = pairs.iter().map(|(from, to)| link(from, to)).collect();
        let names: Vec<String> = (0..pairs.len()).map(|number| number.to_string()).collect();
        let links: Vec<Link<'_>> = headers
            .iter()
            .zip(&names)
            .map(|(header, name)| Link { name, header })
            .collect();
        let chains = Chains::of(&links);
        let faults = chains.faults(&links);
        assert_eq!(chains.only().is_some(), faults.is_empty(), "{faults:?}");
        (chains, faults)
    }

    #[test]
    fn the_order_of_the_arguments_does_not_matter() {
        let (found, _) = chains(&[("c", "d"), ("full", "a"), ("b", "c"), ("a", "b")]);
        assert_eq!(found.only(), Some(&[1, 3, 2, 0][..]));
        assert_eq!(chains(&[("a", "b")]).0.only(), Some(&[0][..]));
    }

    #[test]
    fn a_missing_link_is_named_with_both_files() {
        let (found, faults) = chains(&[("c", "d"), ("a", "b")]);
        assert_eq!(found.segments.len(), 2);
        assert_eq!(faults.len(), 1);
        assert!(
            faults[0].starts_with("a link is missing between 0 and 1"),
            "{faults:?}"
        );
        let (_, faults) = chains(&[("a", "b"), ("", "c")]);
        assert!(faults[0].contains("does not name"), "{faults:?}");
        let (_, faults) = chains(&[("a", ""), ("b", "c")]);
        assert!(faults[0].contains("nothing can follow 0"), "{faults:?}");
        let (_, faults) = chains(&[("a", "b"), ("full", "c")]);
        assert!(faults[0].contains("a full copy"), "{faults:?}");
    }

    #[test]
    fn forks_and_circles_are_no_chain() {
        let (found, faults) = chains(&[("a", "b"), ("b", "c"), ("b", "d")]);
        assert_eq!(found.segments.len(), 3);
        assert_eq!(faults, ["1 and 2 both begin from b"]);
        let (_, faults) = chains(&[("a", "c"), ("b", "c"), ("c", "d")]);
        assert_eq!(faults, ["0 and 1 both lead to c"]);
        let (_, faults) = chains(&[("a", "b"), ("a", "b"), ("a", "b")]);
        assert!(
            faults.contains(&"0, 1 and 2 all begin from a".to_owned()),
            "{faults:?}"
        );
        let (found, faults) = chains(&[("a", "b"), ("b", "a"), ("x", "y")]);
        assert_eq!((found.circles.len(), found.segments.len()), (1, 2));
        assert!(
            faults.iter().any(|fault| fault.contains("circle")),
            "{faults:?}"
        );
        let (found, _) = chains(&[("a", "a")]);
        assert_eq!(found.circles, [0]);
    }
}
