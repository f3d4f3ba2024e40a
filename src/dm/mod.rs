//! Device-mapper and LVM: the only room that talks to them.
//!
//! Guarantees: looking at an active volume needs no LVM command, only sysfs and the control device;
//! `lvs` is asked for what the kernel cannot know (inactive and absent volumes); everything that comes
//! back is parsed by pure code. Nothing here changes a volume, except that `making`, `temporary`, `preview` and `shown` make one where
//! they were asked to, and remove or merge what they have made.

pub mod base;
pub mod device;
pub mod era;
pub mod examine;
pub mod lvm;
pub mod making;
pub mod name;
pub mod openers;
pub mod pool;
pub mod pool_status;
pub mod preview;
pub mod resolve;
pub mod shown;
pub mod snapshot;
pub mod table;
pub mod temporary;
pub mod thin;
pub mod udev;
pub mod uuid;
pub mod wire;

pub use openers::{Openers, writers_open};
pub use resolve::{Resolved, resolve};
pub use snapshot::{LogicalVolume, OriginVolume, Role, ThickSnapshot, recheck};
pub use table::SnapshotStatus;
