//! Reads what dm-log-writes wrote: every write to a disk in the order of its completion, with the flushes between.
//!
//! The format is that of drivers/md/dm-log-writes.c: a superblock in the first sector, then for each entry one
//! sector that describes it and the sectors that were written. A write that was not forced to the medium (FUA) has
//! its place in front of the flush that did; so everything in front of a flush is durable when that has ended, and
//! of what comes after the last flush any part may be.

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;
const SECTOR: u64 = 512;

/// One entry of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Byte offset on the disk.
    pub(crate) offset: u64,
    /// What was written there.
    pub(crate) data: Vec<u8>,
    /// Bytes that were discarded there.
    pub(crate) discarded: u64,
    /// Everything before it became durable.
    pub(crate) flush: bool,
    /// It was durable itself when it ended.
    pub(crate) fua: bool,
    /// The text of a mark.
    pub(crate) mark: Option<String>,
}

/// Reads a log.
pub(crate) fn parse(log: &[u8]) -> Result<Vec<Entry>, String> {
    let word = |at: u64| {
        let at = usize::try_from(at).ok()?;
        let bytes = log.get(at..at.checked_add(8)?)?;
        bytes.try_into().ok().map(u64::from_le_bytes)
    };
    let word = |at: u64| word(at).ok_or_else(|| format!("the log ends before byte {at}"));
    let (magic, version, entries) = (word(0)?, word(8)?, word(16)?);
    if (magic, version) != (MAGIC, 1) {
        return Err(format!(
            "no log of dm-log-writes: {magic:#x} version {version}"
        ));
    }
    let sector = word(24)? & 0xffff_ffff;
    let mut at = sector;
    let mut found = Vec::new();
    for number in 0..entries {
        let (first, sectors) = (word(at)?, word(at + 8)?);
        let (flags, data_bytes) = (word(at + 16)?, word(at + 24)?);
        let mut entry = Entry {
            offset: first * SECTOR,
            flush: flags & FLUSH != 0,
            fua: flags & FUA != 0,
            ..Entry::default()
        };
        let bytes = |from: u64, length: u64| {
            let range = usize::try_from(from)
                .ok()
                .zip(usize::try_from(from + length).ok());
            let bytes = range.and_then(|(from, to)| log.get(from..to));
            bytes.ok_or_else(|| format!("entry {number} goes on past the end of the log"))
        };
        if flags & MARK != 0 {
            let text = bytes(at + 32, data_bytes)?;
            entry.mark = Some(String::from_utf8_lossy(text).into_owned());
        }
        at += sector;
        // Counted in sectors of the log.
        let length = sectors * SECTOR;
        if flags & DISCARD != 0 {
            entry.discarded = length;
        } else {
            entry.data = bytes(at, length)?.to_vec();
            at += length;
        }
        found.push(entry);
    }
    Ok(found)
}

/// The entries that a disk holds after a power cut in front of entry `at`: all up to the last flush, all that were
/// durable when they ended, and of the others those that `survives` says.
pub(crate) fn after_a_cut(
    entries: &[Entry],
    at: usize,
    mut survives: impl FnMut() -> bool,
) -> Vec<usize> {
    let flushed = entries[..at].iter().rposition(|entry| entry.flush);
    let kept = |number: &usize| {
        let durable = flushed.is_some_and(|flushed| *number <= flushed) || entries[*number].fua;
        durable || survives()
    };
    (0..at).filter(kept).collect()
}

#[test]
fn a_log_is_read() {
    let mut log = Vec::new();
    let mut put = |words: &[u64], text: &[u8], data: &[u8]| {
        let mut sector: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        sector.extend_from_slice(text);
        sector.resize(512, 0);
        log.extend(sector);
        log.extend_from_slice(data);
    };
    put(&[MAGIC, 1, 5, 512], b"", b"");
    put(&[8, 2, 0, 0], b"", &[7; 1024]);
    put(&[0, 0, FLUSH, 0], b"", b"");
    put(&[16, 4, DISCARD, 0], b"", b"");
    put(&[0, 0, MARK, 5], b"begin", b"");
    put(&[3, 1, FUA, 0], b"", &[9; 512]);
    let entries = parse(&log).unwrap();
    let expected = [
        Entry {
            offset: 4096,
            data: vec![7; 1024],
            ..Entry::default()
        },
        Entry {
            flush: true,
            ..Entry::default()
        },
        Entry {
            offset: 8192,
            discarded: 2048,
            ..Entry::default()
        },
        Entry {
            mark: Some("begin".to_owned()),
            ..Entry::default()
        },
        Entry {
            offset: 1536,
            data: vec![9; 512],
            fua: true,
            ..Entry::default()
        },
    ];
    assert_eq!(entries, expected);
    assert!(parse(&log[..log.len() - 1]).is_err());
    assert!(parse(&log[512..]).is_err());
    assert_eq!(after_a_cut(&entries, 1, || false), [0; 0]);
    assert_eq!(after_a_cut(&entries, 3, || false), [0, 1]);
    assert_eq!(after_a_cut(&entries, 3, || true), [0, 1, 2]);
    assert_eq!(after_a_cut(&entries, 5, || false), [0, 1, 4]);
}
