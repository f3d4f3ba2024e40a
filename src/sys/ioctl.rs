//! Block-device and device-mapper ioctls.
//!
//! Guarantees: sizes and buffers that the kernel is told of are the ones it may use; a device-mapper
//! request goes to `/dev/mapper/control` and nowhere else; what comes back is bytes, parsed elsewhere.

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Getter, Ioctl, IoctlOutput, NoArg, Opcode, Setter, ioctl, opcode};

use crate::extent::Extent;

const BLKROSET: Opcode = opcode::none(0x12, 93);
const BLKROGET: Opcode = opcode::none(0x12, 94);
const BLKFLSBUF: Opcode = opcode::none(0x12, 97);
const BLKGETSIZE64: Opcode = opcode::read::<usize>(0x12, 114);
const BLKDISCARD: Opcode = opcode::none(0x12, 119);
const BLKZEROOUT: Opcode = opcode::none(0x12, 127);
const LOOP_GET_STATUS64: Opcode = 0x4C05;

/// Size of a block device.
pub fn size_bytes(device: impl AsFd) -> io::Result<u64> {
    // SAFETY: BLKGETSIZE64 writes one u64 (the `size_t` in its number is a historical mistake).
    Ok(unsafe { ioctl(device, Getter::<BLKGETSIZE64, u64>::new()) }?)
}

/// The smallest unit that the device reads and writes.
pub fn logical_block_bytes(device: impl AsFd) -> io::Result<u32> {
    Ok(rustix::fs::ioctl_blksszget(device)?)
}

/// The smallest unit that the device writes without reading first.
pub fn physical_block_bytes(device: impl AsFd) -> io::Result<u32> {
    Ok(rustix::fs::ioctl_blkpbszget(device)?)
}

/// True when the kernel refuses writes to the device.
pub fn is_read_only(device: impl AsFd) -> io::Result<bool> {
    // SAFETY: BLKROGET writes one int.
    Ok(unsafe { ioctl(device, Getter::<BLKROGET, c_int>::new()) }? != 0)
}

/// Device (as in `st_dev`) and inode of the file that is behind a loop device.
pub fn loop_file(device: impl AsFd) -> io::Result<(u64, u64)> {
    // SAFETY: LOOP_GET_STATUS64 writes a `struct loop_info64`, 232 bytes in 8-byte steps (include/uapi/linux/loop.h), of which
    // the first two fields are these.
    let info = unsafe { ioctl(device, Getter::<LOOP_GET_STATUS64, [u64; 29]>::new()) }?;
    Ok((info[0], info[1]))
}

/// Makes the kernel refuse writes, discards and writable mounts of the device until it goes away.
pub fn set_read_only(device: impl AsFd) -> io::Result<()> {
    let on: c_int = 1;
    // SAFETY: BLKROSET reads one int.
    Ok(unsafe { ioctl(device, Setter::<BLKROSET, c_int>::new(on)) }?)
}

/// Writes out and drops what the page cache holds of this one device.
pub fn flush_buffers(device: impl AsFd) -> io::Result<()> {
    // SAFETY: BLKFLSBUF takes no argument.
    Ok(unsafe { ioctl(device, NoArg::<BLKFLSBUF>::new()) }?)
}

/// Makes a range read as zeroes. Offset and length must be multiples of the logical block size.
pub fn zero_out(device: impl AsFd, extent: Extent) -> io::Result<()> {
    let range = [extent.offset(), extent.length()];
    // SAFETY: BLKZEROOUT reads two u64 and writes to the device, not to memory.
    Ok(unsafe { ioctl(device, Setter::<BLKZEROOUT, [u64; 2]>::new(range)) }?)
}

/// Tells the device that a range is not needed. What it reads as afterwards is the device's affair.
pub fn discard(device: impl AsFd, extent: Extent) -> io::Result<()> {
    let range = [extent.offset(), extent.length()];
    // SAFETY: BLKDISCARD reads two u64 and writes to the device, not to memory.
    Ok(unsafe { ioctl(device, Setter::<BLKDISCARD, [u64; 2]>::new(range)) }?)
}

/// The open control device of device-mapper.
#[derive(Debug)]
pub struct DmControl(File);

/// `sizeof(struct dm_ioctl)`: the header of each request and reply, and part of the ioctl numbers.
pub const DM_HEADER_BYTES: usize = 312;

/// The device-mapper commands that look, and the one that says something to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DmCommand {
    /// Version of the interface.
    Version = 0,
    /// Names and numbers of all mapped devices.
    ListDevices = 2,
    /// State of one device.
    DeviceStatus = 7,
    /// Table or status of one device.
    TableStatus = 12,
    /// Target types of this kernel, with versions.
    ListVersions = 13,
    /// A message to a target.
    TargetMessage = 14,
}

impl DmControl {
    /// Opens `/dev/mapper/control`.
    pub fn open() -> io::Result<Self> {
        File::options()
            .read(true)
            .write(true)
            .open("/dev/mapper/control")
            .map(Self)
    }

    /// Sends `packet` and replaces it with the reply. The packet's own size field is overwritten.
    pub fn call(&self, command: DmCommand, packet: &mut [u64]) -> io::Result<()> {
        let bytes = size_of_val(packet);
        let size = u32::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        if bytes < DM_HEADER_BYTES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // `data_size` is the u32 at byte 12: the second half of the second word in memory order.
        let mut word = packet[1].to_ne_bytes();
        word[4..].copy_from_slice(&size.to_ne_bytes());
        packet[1] = u64::from_ne_bytes(word);
        // SAFETY: the kernel reads and writes at most `data_size` bytes of the packet, which is exactly
        // its length, and `DmControl` is only ever the device-mapper control device.
        Ok(unsafe { ioctl(&self.0, DmRequest { command, packet }) }?)
    }
}

struct DmRequest<'a> {
    command: DmCommand,
    packet: &'a mut [u64],
}

// SAFETY: `as_ptr` gives the packet, which is writable and outlives the call; the opcode is the one of
// the command; there is no other output.
unsafe impl Ioctl for DmRequest<'_> {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        opcode::read_write::<[u64; DM_HEADER_BYTES / 8]>(0xfd, self.command as u8)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.packet.as_mut_ptr().cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_carry_their_numbers() {
        // The numbers of linux/fs.h and linux/dm-ioctl.h, on architectures with the generic encoding.
        assert_eq!(BLKROSET, 0x125d);
        assert_eq!(BLKROGET, 0x125e);
        assert_eq!(BLKZEROOUT, 0x127f);
        assert_eq!(BLKDISCARD, 0x1277);
        if cfg!(all(target_arch = "x86_64")) {
            assert_eq!(BLKGETSIZE64, 0x8008_1272);
            let request = DmRequest {
                command: DmCommand::TableStatus,
                packet: &mut [],
            };
            assert_eq!(request.opcode(), 0xc138_fd0c);
        }
    }

    #[test]
    fn a_regular_file_is_no_block_device() {
        let file = tempfile::tempfile().unwrap();
        assert!(size_bytes(&file).is_err());
        assert!(zero_out(&file, Extent::new(0, 512).unwrap()).is_err());
    }
}
