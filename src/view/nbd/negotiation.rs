//! Options and their answers, up to the first request.
//!
//! Pure. Guarantees: every option gets the answer that the protocol asks for, whatever is in it; nothing changes what was
//! agreed but an option that was answered with yes. There is one export, whose name is empty.

use super::wire::{
    ALLOCATION, ALLOCATION_ID, Take, answer, info, option, push_answer, transmission,
};

/// More than any option that is known here needs.
pub const MAX_OPTION_BYTES: u32 = 64 << 10;
/// Options in one negotiation.
pub const MAX_OPTIONS: usize = 256;
/// Contexts that a client may ask for at once.
const MAX_QUERIES: u32 = 256;

/// The smallest, the best, and the largest request. The last is what clients may rely on unless told otherwise.
const BLOCK_BYTES: [u32; 3] = [1, 4096, super::request::MAX_REQUEST_BYTES];

/// What an export says of itself.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Clients may write.
    pub is_writable: bool,
    /// Nothing is told or served before TLS was begun.
    pub needs_tls: bool,
}

impl Offer {
    /// The flags of the export.
    pub fn flags(&self) -> u16 {
        use transmission::*;
        let always = HAS_FLAGS | SEND_FLUSH | CAN_MULTI_CONN | SEND_CACHE;
        always
            | if self.is_writable {
                SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES
            } else {
                READ_ONLY
            }
    }
}

/// What was agreed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// Replies come in chunks.
    pub structured: bool,
    /// The client may ask what is allocated.
    pub allocation: bool,
}

/// What comes after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Another option.
    Option,
    /// Requests.
    Transmission,
    /// TLS, and then options as if nothing had been said before.
    Tls,
    /// Nothing: the connection ends.
    End,
}

/// A negotiation that goes on.
#[derive(Debug)]
pub struct Negotiation {
    offer: Offer,
    /// Nothing behind the answer to `EXPORT_NAME`.
    no_zeroes: bool,
    agreed: Agreed,
    has_tls: bool,
}

impl Negotiation {
    /// One with a client that has sent these flags; `None` for flags that are not known.
    pub fn new(offer: Offer, client_flags: u32) -> Option<Self> {
        let known = u32::from(super::wire::FIXED_NEWSTYLE | super::wire::NO_ZEROES);
        (client_flags & !known == 0).then_some(Self {
            offer,
            no_zeroes: client_flags & u32::from(super::wire::NO_ZEROES) != 0,
            agreed: Agreed::default(),
            has_tls: false,
        })
    }

    /// TLS is there: what was said before it may be anybody's, and counts no more.
    pub fn secured(&mut self) {
        self.agreed = Agreed::default();
        self.has_tls = true;
    }

    /// What was agreed so far.
    pub fn agreed(&self) -> Agreed {
        self.agreed
    }

    /// Answers an option into `out`.
    pub fn option(&mut self, number: u32, data: &[u8], out: &mut Vec<u8>) -> Then {
        let mut say = |kind, data: &[u8]| push_answer(out, number, kind, data);
        if self.offer.needs_tls && !self.has_tls {
            match number {
                // Has no answer that means no.
                option::EXPORT_NAME => return Then::End,
                option::STARTTLS if data.is_empty() => {
                    say(answer::ACK, &[]);
                    return Then::Tls;
                }
                option::ABORT | option::STARTTLS => {}
                _ => {
                    say(answer::ERR_TLS_REQD, b"TLS comes first");
                    return Then::Option;
                }
            }
        }
        match number {
            option::EXPORT_NAME => return self.export_name(data, out),
            option::ABORT => {
                say(answer::ACK, &[]);
                return Then::End;
            }
            option::LIST if data.is_empty() => {
                say(answer::SERVER, &0u32.to_be_bytes());
                say(answer::ACK, &[]);
            }
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.agreed.structured = true;
                say(answer::ACK, &[]);
            }
            option::LIST | option::STRUCTURED_REPLY => {
                say(answer::ERR_INVALID, b"this option has no data");
            }
            option::STARTTLS if self.offer.needs_tls => {
                say(answer::ERR_INVALID, b"TLS begins once, without data");
            }
            option::INFO | option::GO => return self.info(number, data, out),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.contexts(number, data, out);
            }
            option::STARTTLS => {
                say(
                    answer::ERR_POLICY,
                    b"no TLS here: the export was begun without --tls-certificates",
                );
            }
            _ => say(answer::ERR_UNSUP, &[]),
        }
        Then::Option
    }

    /// An option with more data than is read.
    pub fn too_big(&self, number: u32, out: &mut Vec<u8>) -> Then {
        if number == option::EXPORT_NAME {
            return Then::End;
        }
        push_answer(out, number, answer::ERR_TOO_BIG, &[]);
        Then::Option
    }

    /// The old way in, which knows no "no".
    fn export_name(&mut self, name: &[u8], out: &mut Vec<u8>) -> Then {
        if !name.is_empty() {
            return Then::End;
        }
        out.extend_from_slice(&self.offer.size_bytes.to_be_bytes());
        out.extend_from_slice(&self.offer.flags().to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&[0; 124]);
        }
        Then::Transmission
    }

    fn info(&mut self, number: u32, data: &[u8], out: &mut Vec<u8>) -> Then {
        let mut say = |kind, data: &[u8]| push_answer(out, number, kind, data);
        let Some((name, wants_block_size)) = parse_info(data) else {
            say(
                answer::ERR_INVALID,
                b"name and requests do not fit the length",
            );
            return Then::Option;
        };
        if !name.is_empty() {
            say(
                answer::ERR_UNKNOWN,
                b"there is one export, whose name is empty",
            );
            return Then::Option;
        }
        let mut export = info::EXPORT.to_be_bytes().to_vec();
        export.extend_from_slice(&self.offer.size_bytes.to_be_bytes());
        export.extend_from_slice(&self.offer.flags().to_be_bytes());
        say(answer::INFO, &export);
        if wants_block_size {
            let mut sizes = info::BLOCK_SIZE.to_be_bytes().to_vec();
            for size in BLOCK_BYTES {
                sizes.extend_from_slice(&size.to_be_bytes());
            }
            say(answer::INFO, &sizes);
        }
        say(answer::ACK, &[]);
        if number == option::GO {
            Then::Transmission
        } else {
            Then::Option
        }
    }

    fn contexts(&mut self, number: u32, data: &[u8], out: &mut Vec<u8>) {
        let is_set = number == option::SET_META_CONTEXT;
        if is_set {
            // Whatever comes of it, what was chosen before is chosen no more.
            self.agreed.allocation = false;
        }
        let mut say = |kind, data: &[u8]| push_answer(out, number, kind, data);
        if is_set && !self.agreed.structured {
            say(answer::ERR_INVALID, b"structured replies come first");
            return;
        }
        let Some((name, queries)) = parse_contexts(data) else {
            say(
                answer::ERR_INVALID,
                b"name and queries do not fit the length",
            );
            return;
        };
        if !name.is_empty() {
            say(
                answer::ERR_UNKNOWN,
                b"there is one export, whose name is empty",
            );
            return;
        }
        let is_meant = |query: &&str| **query == *ALLOCATION || (!is_set && **query == *"base:");
        let is_chosen = queries.iter().any(is_meant) || (!is_set && queries.is_empty());
        if is_chosen {
            let id = if is_set { ALLOCATION_ID } else { 0 };
            let mut context = id.to_be_bytes().to_vec();
            context.extend_from_slice(ALLOCATION.as_bytes());
            say(answer::META_CONTEXT, &context);
        }
        self.agreed.allocation |= is_set && is_chosen;
        say(answer::ACK, &[]);
    }
}

/// The name, and whether block sizes are asked for.
fn parse_info(data: &[u8]) -> Option<(&str, bool)> {
    let mut take = Take(data);
    let name = take.text()?;
    let count = take.u16()?;
    let mut wants_block_size = false;
    for _ in 0..count {
        wants_block_size |= take.u16()? == info::BLOCK_SIZE;
    }
    take.0.is_empty().then_some((name, wants_block_size))
}

/// The name, and what is asked for.
fn parse_contexts(data: &[u8]) -> Option<(&str, Vec<&str>)> {
    let mut take = Take(data);
    let name = take.text()?;
    let count = take.u32()?;
    if count > MAX_QUERIES {
        return None;
    }
    let queries = (0..count)
        .map(|_| take.text())
        .collect::<Option<Vec<_>>>()?;
    take.0.is_empty().then_some((name, queries))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun() -> Negotiation {
        let offer = Offer {
            size_bytes: 1 << 20,
            is_writable: false,
            needs_tls: false,
        };
        Negotiation::new(offer, 3).unwrap()
    }

    #[test]
    fn where_tls_is_needed_nothing_is_told_before_it_and_what_was_said_before_counts_no_more() {
        let offer = Offer {
            needs_tls: true,
            ..begun().offer
        };
        let mut with = Negotiation::new(offer, 3).unwrap();
        let needs = (vec![answer::ERR_TLS_REQD], Then::Option);
        for number in [
            option::LIST,
            option::INFO,
            option::GO,
            option::STRUCTURED_REPLY,
            option::SET_META_CONTEXT,
            99,
        ] {
            assert_eq!(ask(&mut with, number, b""), needs, "{number}");
        }
        assert_eq!(
            ask(&mut with, option::EXPORT_NAME, b""),
            (vec![], Then::End)
        );
        assert_eq!(
            ask(&mut with, option::STARTTLS, b"x").0,
            [answer::ERR_INVALID]
        );
        assert_eq!(
            ask(&mut with, option::STARTTLS, b""),
            (vec![answer::ACK], Then::Tls)
        );
        with.agreed.structured = true;
        with.secured();
        assert_eq!(with.agreed(), Agreed::default());
        assert_eq!(
            ask(&mut with, option::STARTTLS, b"").0,
            [answer::ERR_INVALID]
        );
        let go = named("", &[0, 0]);
        assert_eq!(ask(&mut with, option::GO, &go).1, Then::Transmission);
    }

    /// The kinds of the answers.
    fn ask(with: &mut Negotiation, number: u32, data: &[u8]) -> (Vec<u32>, Then) {
        let mut out = Vec::new();
        let then = with.option(number, data, &mut out);
        let mut take = Take(&out);
        let mut kinds = Vec::new();
        while !take.0.is_empty() {
            assert_eq!(take.u64(), Some(super::super::wire::OPTION_REPLY_MAGIC));
            assert_eq!(take.u32(), Some(number));
            kinds.push(take.u32().unwrap());
            let length = take.u32().unwrap() as usize;
            take.bytes(length).unwrap();
        }
        (kinds, then)
    }

    fn named(name: &str, rest: &[u8]) -> Vec<u8> {
        let mut data = (name.len() as u32).to_be_bytes().to_vec();
        data.extend_from_slice(name.as_bytes());
        data.extend_from_slice(rest);
        data
    }

    fn queries(queries: &[&str]) -> Vec<u8> {
        let mut data = (queries.len() as u32).to_be_bytes().to_vec();
        for query in queries {
            data.extend(named(query, &[]));
        }
        named("", &data)
    }

    #[test]
    fn unknown_flags_and_options_are_not_taken_for_known_ones() {
        let offer = begun().offer;
        assert!(Negotiation::new(offer, 4).is_none());
        assert_eq!(
            ask(&mut begun(), 99, b"x"),
            (vec![answer::ERR_UNSUP], Then::Option)
        );
        assert_eq!(
            ask(&mut begun(), option::STARTTLS, b""),
            (vec![answer::ERR_POLICY], Then::Option)
        );
        assert_eq!(
            ask(&mut begun(), option::LIST, b"x"),
            (vec![answer::ERR_INVALID], Then::Option)
        );
        assert_eq!(
            ask(&mut begun(), option::ABORT, b""),
            (vec![answer::ACK], Then::End)
        );
    }

    #[test]
    fn go_leads_to_requests_and_info_does_not() {
        let data = named("", &[0, 1, 0, 3]);
        let yes = vec![answer::INFO, answer::INFO, answer::ACK];
        assert_eq!(
            ask(&mut begun(), option::INFO, &data),
            (yes.clone(), Then::Option)
        );
        assert_eq!(
            ask(&mut begun(), option::GO, &data),
            (yes, Then::Transmission)
        );
        let other = named("other", &[0, 0]);
        assert_eq!(
            ask(&mut begun(), option::GO, &other),
            (vec![answer::ERR_UNKNOWN], Then::Option)
        );
        for wrong in [
            &[][..],
            &[0, 0, 0, 9, 0],
            &data[..7],
            &[&data[..], &[0]].concat(),
        ] {
            assert_eq!(
                ask(&mut begun(), option::GO, wrong),
                (vec![answer::ERR_INVALID], Then::Option)
            );
        }
    }

    #[test]
    fn a_context_is_set_after_structured_replies_and_unset_by_what_fails() {
        let mut with = begun();
        let set = queries(&["base:allocation", "qemu:dirty-bitmap:x"]);
        assert_eq!(
            ask(&mut with, option::SET_META_CONTEXT, &set).0,
            [answer::ERR_INVALID]
        );
        ask(&mut with, option::STRUCTURED_REPLY, b"");
        let found = ask(&mut with, option::SET_META_CONTEXT, &set).0;
        assert_eq!(found, [answer::META_CONTEXT, answer::ACK]);
        assert!(with.agreed().allocation);
        assert_eq!(
            ask(&mut with, option::SET_META_CONTEXT, b"").0,
            [answer::ERR_INVALID]
        );
        assert!(!with.agreed().allocation);
        assert_eq!(
            ask(&mut with, option::SET_META_CONTEXT, &queries(&["base:"])).0,
            [answer::ACK]
        );
        for list in [queries(&[]), queries(&["base:"])] {
            let found = ask(&mut with, option::LIST_META_CONTEXT, &list).0;
            assert_eq!(found, [answer::META_CONTEXT, answer::ACK]);
        }
        let many = named("", &u32::MAX.to_be_bytes());
        assert_eq!(
            ask(&mut with, option::LIST_META_CONTEXT, &many).0,
            [answer::ERR_INVALID]
        );
    }
}
