//! A metadata snapshot, of a thin pool or of an era device: the kernel keeps one for each, without an owner, and it
//! outlives the process that asked for it, even the activation of the device.
//!
//! Guarantees: one lvmsync at a time asks for it; it is released only where a record proves that it is ours: the
//! pool's UUID, the block where it is, and the bytes of that block, whose copied superblock changes with every
//! transaction; a foreign one is left alone and reported. Nothing is suspended, and an era device that somebody else has
//! suspended is asked for nothing, since it would not answer. What was read is good only if [`Reservation::release`] still
//! found it held.

use std::thread;
use std::time::Duration;

use super::lock::LockFile;
use super::record::{Held, HeldFile, name_of};
use crate::dm::device::{DeviceMapper, device_path};
use crate::dm::era::{status_of, suspended};
use crate::dm::name::{LvName, split_dm_name};
use crate::dm::pool_status::{PoolStatus, parse_pool_status};
use crate::dm::table::{Target, parse_target};
use crate::dm::wire::Selector;
use crate::error::{Error, Result};
use crate::record::store::StateDir;
use crate::sys::aligned::AlignedBuffer;
use crate::sys::device::DeviceNumber;
use crate::volume::ReadAt;
use crate::volume::host::boot_id;
use crate::volume::open::Volume;

/// Blocks of the metadata.
const BLOCK_BYTES: usize = 4096;

/// So long is waited for somebody to resume an era device, before its metadata snapshot is left to the next run.
const ATTEMPTS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(100);

/// What has the metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    ThinPool,
    Era,
}

impl Kind {
    /// For messages.
    fn noun(self) -> &'static str {
        match self {
            Self::ThinPool => "pool",
            Self::Era => "era device",
        }
    }

    /// In names of files.
    fn word(self) -> &'static str {
        match self {
            Self::ThinPool => "pool",
            Self::Era => "era",
        }
    }

    fn take(self) -> &'static str {
        match self {
            Self::ThinPool => "reserve_metadata_snap",
            Self::Era => "take_metadata_snap",
        }
    }

    fn release(self) -> &'static str {
        match self {
            Self::ThinPool => "release_metadata_snap",
            Self::Era => "drop_metadata_snap",
        }
    }

    fn readers(self) -> &'static str {
        match self {
            Self::ThinPool => "thin_delta, thin_dump, a backup",
            Self::Era => "era_invalidate, era_dump, a backup",
        }
    }
}

/// An active pool, or an era device.
#[derive(Debug)]
pub struct Pool {
    kind: Kind,
    device: DeviceNumber,
    /// `vg/pool`, or the device's name where LVM did not make it.
    name: String,
    /// What `dmsetup` calls it.
    dm_name: String,
    uuid: String,
    metadata: Volume,
}

/// The snapshot, held.
#[derive(Debug)]
pub struct Reservation {
    pool: Pool,
    root: u64,
    held: Held,
    file: HeldFile,
    // Held as long as the reservation is.
    _lock: LockFile,
}

/// How a run waits: hears why, and says if it has had enough.
pub type Wait<'a> = &'a mut dyn FnMut(&str) -> Result<()>;

impl Pool {
    /// The pool with this `-tpool` device, or the era device with this number, its metadata opened for reading past the page cache.
    pub fn open(dm: &DeviceMapper, device: DeviceNumber) -> Result<Self> {
        let absent = || Error::Lvm {
            what: format!("device {device}"),
            reason: "there is no such thin pool or era device any more".to_owned(),
        };
        let info = dm.info(Selector::Device(device))?.ok_or_else(absent)?;
        let line = dm.table(device)?.into_iter().next().ok_or_else(absent)?;
        let (kind, metadata) = match parse_target(&line.kind, &line.params) {
            Ok(Target::ThinPool { metadata, .. }) => (Kind::ThinPool, metadata),
            Ok(Target::Era { metadata, .. }) => (Kind::Era, metadata),
            _ => {
                return Err(Error::Lvm {
                    what: info.name,
                    reason: format!(
                        "it is neither a thin pool nor an era device: its table says `{}`",
                        line.kind
                    ),
                });
            }
        };
        let name = match (kind, split_dm_name(&info.name)) {
            (Kind::ThinPool, Some((name, _))) => name.to_string(),
            (Kind::Era, _) => format!("/dev/mapper/{}", info.name),
            _ => info.name.clone(),
        };
        let uuid = match info.uuid.is_empty() {
            true => format!("name:{}", info.name),
            false => info.uuid,
        };
        let metadata_name = dm.info(Selector::Device(metadata))?.map(|info| info.name);
        Ok(Self {
            kind,
            device,
            name,
            dm_name: info.name,
            uuid,
            metadata: Volume::open(device_path(metadata, &metadata_name.unwrap_or_default()))?,
        })
    }

    /// The command that gives the snapshot back by hand.
    pub fn release_command(&self) -> String {
        format!(
            "dmsetup message /dev/mapper/{} 0 {}",
            self.dm_name,
            self.kind.release()
        )
    }

    /// The block of the snapshot's superblock, while there is one.
    pub fn held_root(&self, dm: &DeviceMapper) -> Result<Option<u64>> {
        if self.kind == Kind::Era {
            return status_of(dm, self.device, &self.name).map(|status| status.held_root);
        }
        let lines = dm.status(self.device)?;
        let status = lines.first().map_or("", |line| line.params.as_str());
        match parse_pool_status(status) {
            Ok(PoolStatus::Working(figures)) => Ok(figures.held_root),
            Ok(failed @ PoolStatus::Failed) => Err(self
                .broken(&failed)
                .unwrap_or_else(|| self.wrong("the pool has failed".to_owned()))),
            Err(_) => Err(self.wrong(format!("the pool does not work; its status is `{status}`"))),
        }
    }

    fn wrong(&self, reason: String) -> Error {
        Error::Lvm {
            what: self.name.clone(),
            reason,
        }
    }

    /// What there is to say where its state is the reason why nothing can be asked of it.
    fn broken(&self, status: &PoolStatus) -> Option<Error> {
        let name = LvName::parse(&self.name)?;
        let trouble = status.trouble_for_reader(&name)?;
        let reason = trouble.reason.replacen("its thin pool", "the thin pool", 1);
        Some(Error::refused(&self.name, reason, trouble.way_out))
    }

    /// BLAKE3 of a block of the metadata, as it is on the disk now.
    fn digest(&self, block: u64) -> Result<String> {
        let mut bytes = AlignedBuffer::new(BLOCK_BYTES);
        let offset = block.saturating_mul(BLOCK_BYTES as u64);
        self.metadata
            .read_exact_at(&mut bytes[..BLOCK_BYTES], offset)
            .map_err(|error| {
                let action = format!("cannot read block {block} of the metadata of {}", self.name);
                Error::io(action, error)
            })?;
        Ok(blake3::hash(&bytes[..BLOCK_BYTES]).to_hex().to_string())
    }

    fn is_suspended(&self, dm: &DeviceMapper) -> Result<bool> {
        let info = dm.info(Selector::Device(self.device))?;
        Ok(info.is_some_and(|info| info.suspended))
    }

    /// Waits a while for an era device that is suspended.
    fn wait_for_resume(&self, dm: &DeviceMapper) -> Result<()> {
        for _ in 0..ATTEMPTS {
            if self.kind != Kind::Era || !self.is_suspended(dm)? {
                break;
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn message(&self, dm: &DeviceMapper, text: &str) -> Result<()> {
        if self.kind == Kind::Era && self.is_suspended(dm)? {
            return Err(suspended(&self.name, &self.dm_name));
        }
        dm.message(self.device, text).map_err(|error| {
            if self.kind == Kind::Era {
                return self.wrong(format!("the era device does not accept `{text}`: {error}"));
            }
            let status = dm.status(self.device).ok();
            let status = status.and_then(|lines| Some(lines.first()?.params.clone()));
            let status = status.unwrap_or_default();
            // A failure may be what broke it: then that is the news.
            let broken = parse_pool_status(&status).ok();
            broken
                .and_then(|status| self.broken(&status))
                .unwrap_or_else(|| {
                    self.wrong(format!(
                        "the pool does not accept `{text}`: {error}; its status is `{status}`"
                    ))
                })
        })
    }
}

impl Reservation {
    /// Takes the snapshot; one that a run of ours has left is released first.
    pub fn take(dm: &DeviceMapper, pool: Pool, state: &StateDir, wait: Wait<'_>) -> Result<Self> {
        let lock = LockFile::open(&name_of(pool.kind.word(), &pool.uuid))?;
        while !lock.try_alone()? {
            wait(&format!(
                "{}: another lvmsync reads the {}'s metadata; waiting for it",
                pool.name,
                pool.kind.noun()
            ))?;
        }
        let file = match pool.kind {
            Kind::ThinPool => HeldFile::of_pool(state, &pool.uuid),
            Kind::Era => HeldFile::of_era_device(state, &pool.uuid),
        };
        if let Some(root) = pool.held_root(dm)? {
            release_left(dm, &pool, root, &file, wait)?;
        }
        let mut held = Held {
            of: pool.uuid.clone(),
            name: pool.name.clone(),
            boot: boot_id().unwrap_or_default(),
            process: std::process::id(),
            ..Held::default()
        };
        file.save(&held)?;
        if let Err(error) = pool.message(dm, pool.kind.take()) {
            file.remove()?;
            // Somebody was faster, and is no lvmsync.
            return Err(match pool.held_root(dm) {
                Ok(Some(root)) => foreign(&pool, root, None),
                _ => error,
            });
        }
        // From here on it is ours: the kernel gives it to nobody else before it is released.
        let root = match put_on_record(dm, &pool, &mut held, &file) {
            Ok(root) => root,
            Err(error) => {
                if pool.message(dm, pool.kind.release()).is_ok() {
                    let _ = file.remove();
                }
                return Err(error);
            }
        };
        Ok(Self {
            pool,
            root,
            held,
            file,
            _lock: lock,
        })
    }

    /// The block of the pool's metadata where the snapshot's superblock is.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Gives it back. An error if it was not ours any more: then what was read may be of no moment at all.
    pub fn release(self, dm: &DeviceMapper) -> Result<()> {
        self.pool.wait_for_resume(dm)?;
        let mut is_ours = self.pool.held_root(dm)? == Some(self.root);
        if is_ours {
            let digest = self.pool.digest(self.root);
            let digest = digest.map_err(|error| stays(&self.pool, &error))?;
            is_ours = self.held.digest == Some(digest);
        }
        if !is_ours {
            self.file.remove()?;
            return Err(taken_away(&self.pool));
        }
        self.pool.message(dm, self.pool.kind.release())?;
        self.file.remove()
    }
}

/// Where the snapshot is that was just taken, and what is in it: from then on a record proves that it is ours.
fn put_on_record(dm: &DeviceMapper, pool: &Pool, held: &mut Held, file: &HeldFile) -> Result<u64> {
    let root = pool.held_root(dm)?.ok_or_else(|| taken_away(pool))?;
    held.root = Some(root);
    held.digest = Some(pool.digest(root)?);
    file.save(held)?;
    Ok(root)
}

/// A snapshot is there, and no living lvmsync holds it, for we have the lock.
fn release_left(
    dm: &DeviceMapper,
    pool: &Pool,
    root: u64,
    file: &HeldFile,
    wait: Wait<'_>,
) -> Result<()> {
    let held = file.load();
    let digest = pool.digest(root)?;
    if !held
        .as_ref()
        .is_some_and(|held| proves(held, &pool.uuid, root, &digest))
    {
        return Err(foreign(pool, root, held.as_ref()));
    }
    pool.message(dm, pool.kind.release())?;
    file.remove()?;
    wait(&format!(
        "{}: released the metadata snapshot that a killed run has left",
        pool.name
    ))
}

/// Whether what is held is what the record describes: of this pool, at this block, with these bytes. The bytes
/// hold roots and times of that moment, so they are proof after a reboot, too.
fn proves(held: &Held, pool_uuid: &str, root: u64, digest: &str) -> bool {
    held.of == pool_uuid && held.root == Some(root) && held.digest.as_deref() == Some(digest)
}

fn foreign(pool: &Pool, root: u64, held: Option<&Held>) -> Error {
    let doubt = match held {
        Some(held) if held.root.is_none() => format!(
            "; a run of lvmsync (process {}) was killed while it asked for it, so it may be that one's",
            held.process
        ),
        _ => String::new(),
    };
    let reason = format!(
        "its metadata snapshot is held (root in block {root}), and no record proves that it is \
         lvmsync's{doubt}. There is only one for each {}",
        pool.kind.noun()
    );
    let way_out = format!(
        "Wait until the program that holds it ({}) is done. If none is at work: {}",
        pool.kind.readers(),
        pool.release_command()
    );
    Error::refused(&pool.name, reason, way_out)
}

/// What cannot be read proves nothing, so it is not released. Its record stays, too, and is proof when the disk is well.
fn stays(pool: &Pool, error: &Error) -> Error {
    pool.wrong(format!(
        "{}. So nothing proves that the {}'s metadata snapshot is still lvmsync's, and it is not released; what was \
         read counts for nothing. When the disk below the metadata is well, the next run releases it. If no other \
         program holds it: {}",
        error.chain(),
        pool.kind.noun(),
        pool.release_command()
    ))
}

fn taken_away(pool: &Pool) -> Error {
    Error::Lvm {
        what: pool.name.clone(),
        reason: format!(
            "somebody released the {}'s metadata snapshot while it was read, so what was read is \
             not to be trusted; run it again",
            pool.kind.noun()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_bytes_in_the_same_block_of_the_same_pool_are_proof() {
        let held = Held {
            of: "LVM-a-tpool".into(),
            root: Some(9),
            digest: Some("d".into()),
            ..Held::default()
        };
        assert!(proves(&held, "LVM-a-tpool", 9, "d"));
        assert!(!proves(&held, "LVM-b-tpool", 9, "d"));
        assert!(!proves(&held, "LVM-a-tpool", 8, "d"));
        assert!(!proves(&held, "LVM-a-tpool", 9, "e"));
        let asking = Held {
            root: None,
            digest: None,
            ..held
        };
        assert!(!proves(&asking, "LVM-a-tpool", 9, "d"));
    }
}
