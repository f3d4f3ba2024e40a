//! Ten deltas of one volume, each of an eighth of it: how fast `combine` makes one of them, and how fast `view --nbd` gives
//! the state behind them to whoever reads.
//!
//! `combine` is held against `cat` of as many bytes as survive, into a file that is synced. `view` is held against `qemu-nbd`
//! of the finished image: the same client, the same reads. All is in the page cache.

use super::hardware::ready;
use super::measure::{Meter, Sample};
use super::turns::{Contestant, in_turns};
use super::{Bar, Figure, Setting, failed, inputs};
use crate::packages;
use lab::Error;
use lvmsync::change_list::ChangeList;
use lvmsync::delta::codec::Codec;
use lvmsync::delta::header::{Header, Planned, Source, State};
use lvmsync::delta::samples::Samples;
use lvmsync::delta::writer::DeltaWriter;
use lvmsync::extent::{Change, Extent, Kind};
use lvmsync::volume::open::Volume;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const BENCH: &str = "history";
const DELTAS: u64 = 10;
const FRAME: u64 = 1 << 20;

pub(super) fn run(setting: &Setting) -> lab::Result<Vec<Figure>> {
    packages::install_these(&packages::FOR_VIEW)?;
    let path = |name: &str| setting.scratch.join(name);
    let chain = Chain {
        setting,
        meter: Meter::new(&setting.scratch, None)?,
        base: path("base"),
        deltas: (1..=DELTAS).map(|n| path(&format!("{n}.delta"))).collect(),
    };
    inputs::dense(&chain.base, setting.size, 1).map_err(failed(&chain.base))?;
    let surviving = chain.make().map_err(failed(&setting.scratch))?;
    let mut figures = chain.combined(surviving)?;
    figures.extend(chain.viewed()?);
    for file in chain.deltas.iter().chain([&chain.base]) {
        let _ = fs::remove_file(file);
    }
    Ok(figures)
}

struct Chain<'a> {
    setting: &'a Setting,
    meter: Meter<'a>,
    base: PathBuf,
    deltas: Vec<PathBuf>,
}

impl Chain<'_> {
    /// Writes the deltas; how many bytes of the volume any of them changes.
    fn make(&self) -> io::Result<u64> {
        let frames = self.setting.size / FRAME;
        let mut all = BTreeSet::new();
        for (number, path) in (1..).zip(&self.deltas) {
            // A step that has no divisor in common with a power of two reaches other frames each time.
            let first = number * 7919;
            let places: BTreeSet<u64> = (0..frames / 8)
                .map(|n| (first + n * (8 * number + 5)) % frames)
                .collect();
            write_delta(path, &self.base, (number, self.setting.size), &places)?;
            all.extend(places);
        }
        Ok(all.len() as u64 * FRAME)
    }

    fn ready(&self) -> lab::Result<()> {
        for file in self.deltas.iter().chain([&self.base]) {
            ready(file, false)?;
        }
        Ok(())
    }

    fn lvmsync(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.setting.lvmsync);
        command.arg(verb).arg("--quiet").args(&self.deltas);
        command
    }

    fn combined(&self, surviving: u64) -> lab::Result<Vec<Figure>> {
        let path = |name: &str| self.setting.scratch.join(name);
        let (content, copy, out) = (path("content"), path("copy"), path("out.delta"));
        inputs::dense(&content, surviving, 2).map_err(failed(&content))?;
        let script = format!("cat {0} > {1}; sync {1}", content.display(), copy.display());
        let contestants = vec![
            Contestant::limit("cat of what survives", || {
                let _ = fs::remove_file(&copy);
                ready(&content, false)?;
                Ok(self.meter.script(&script)?.0)
            }),
            Contestant::ours("lvmsync combine", Bar::AtLeast(0.8), || {
                let _ = fs::remove_file(&out);
                self.ready()?;
                let mut command = self.lvmsync("combine");
                let sample = self.meter.run(command.arg("-o").arg(&out))?.0;
                let length = fs::metadata(&out).map_err(failed(&out))?.len();
                // What is fast and wrong is worth nothing.
                match length.checked_sub(surviving) {
                    Some(more) if more < surviving / 100 + (1 << 20) => Ok(sample),
                    _ => Err(Error::new(format!(
                        "combined: {length} bytes of {surviving}"
                    ))),
                }
            }),
        ];
        let runs = self.setting.runs;
        let figures = in_turns(runs, BENCH, "ten deltas into one", surviving, contestants)?;
        for file in [&content, &copy, &out] {
            let _ = fs::remove_file(file);
        }
        Ok(figures)
    }

    fn viewed(&self) -> lab::Result<Vec<Figure>> {
        let path = |name: &str| self.setting.scratch.join(name);
        let (image, ours, theirs) = (path("image"), path("ours.sock"), path("theirs.sock"));
        let mut command = self.lvmsync("view");
        self.meter.run(
            command
                .arg("--base")
                .arg(&self.base)
                .arg("--to")
                .arg(&image),
        )?;
        self.ready()?;
        ready(&image, false)?;
        let mut view = self.lvmsync("view");
        view.arg("--base").arg(&self.base);
        view.arg("--nbd").arg(format!("unix:{}", ours.display()));
        let mut qemu = Command::new("qemu-nbd");
        qemu.args(["-r", "-f", "raw", "--persistent", "--shared", "8", "-k"]);
        qemu.arg(&theirs).arg(&image);
        let _servers = (Server::start(view, &ours)?, Server::start(qemu, &theirs)?);
        let copy = |socket: &Path| {
            let mut command = Command::new("nbdcopy");
            command.arg(format!("nbd+unix:///?socket={}", socket.display()));
            Ok(self.meter.run(command.arg("null:"))?.0)
        };
        // Both give the same bytes, or it counts for nothing.
        let uri = |socket: &Path| format!("nbd:unix:{}", socket.display());
        let mut same = Command::new("qemu-img");
        same.args(["compare", "-f", "raw", "-F", "raw"]);
        self.meter.run(same.arg(uri(&ours)).arg(uri(&theirs)))?;
        let reads = self.setting.size / (64 << 10);
        let here_and_there = |socket: &Path| {
            let mut command = Command::new("qemu-img");
            command.args(["bench", "-f", "raw", "-d", "16", "-s", "4096"]);
            command.arg("-c").arg(reads.to_string());
            // So far apart that no read is near the one before.
            command.arg("-S").arg((37 * FRAME + 4096).to_string());
            Ok(self.meter.run(command.arg(uri(socket)))?.0)
        };
        let mut figures = self.against_qemu(
            "read through by nbdcopy",
            self.setting.size,
            [&ours, &theirs],
            copy,
        )?;
        figures.extend(self.against_qemu(
            "4 KiB here and there, 16 at a time",
            reads * 4096,
            [&ours, &theirs],
            here_and_there,
        )?);
        let _ = fs::remove_file(&image);
        Ok(figures)
    }

    fn against_qemu(
        &self,
        case: &str,
        bytes: u64,
        [ours, theirs]: [&Path; 2],
        read: impl Fn(&Path) -> lab::Result<Sample>,
    ) -> lab::Result<Vec<Figure>> {
        let contestants = vec![
            Contestant::limit("qemu-nbd of the finished image", || read(theirs)),
            Contestant::ours("lvmsync view --nbd", Bar::AtLeast(0.7), || read(ours)),
        ];
        in_turns(self.setting.runs, BENCH, case, bytes, contestants)
    }
}

/// From state `number - 1`, with noise in the frames of a MiB at `places`.
fn write_delta(
    path: &Path,
    base: &Path,
    (number, size): (u64, u64),
    places: &BTreeSet<u64>,
) -> io::Result<()> {
    let state = |number: u64| {
        Some(State {
            id: format!("bench:{number}"),
            name: format!("vg/s{number}"),
        })
    };
    let extents = || {
        places
            .iter()
            .filter_map(|place| Extent::new(place * FRAME, FRAME))
    };
    let kind = Kind::Data;
    let changes: ChangeList = extents().map(|extent| Change { extent, kind }).collect();
    let header = Header {
        volume_size: size,
        base_size: Some(size),
        base: state(number - 1),
        target: state(number),
        source: Source::Cow,
        granularity: FRAME,
        created: 0,
        codec: "none".to_owned(),
        program: "bench".to_owned(),
        planned: Planned::default(),
        list: Some(changes.digest()),
        run: None,
        undo_of: None,
        undo_for: None,
        from_offset: 0,
        required_features: vec![],
        features: vec![],
    };
    // Of what no delta changes the samples are the same in every state; of what one has changed they would not be.
    let samples = match number {
        1 => Samples::take(&Volume::open(base).map_err(io::Error::other)?, &changes)?,
        _ => Samples::default(),
    };
    let mut writer = DeltaWriter::new(BufWriter::new(File::create(path)?), &header, &samples)?;
    if samples.is_empty() {
        writer.no_samples()?;
    }
    let mut bytes = vec![0; usize::try_from(FRAME).unwrap_or(0)];
    let source = File::open(base)?;
    for extent in extents() {
        // Other bytes than the base has there, as far from each other.
        source.read_exact_at(&mut bytes, size - FRAME - extent.offset())?;
        bytes[0] ^= number.to_le_bytes()[0];
        writer.data(extent, Codec::None, &bytes)?;
    }
    writer.finish()?.1.into_inner()?.sync_all()
}

/// An export, until this is dropped.
struct Server(Child);

impl Server {
    fn start(mut command: Command, socket: &Path) -> lab::Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let server = Self(child.map_err(|e| Error::new(format!("{command:?}: {e}")))?);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !socket.exists() {
            if Instant::now() > deadline {
                return Err(Error::new(format!("{command:?}: no {}", socket.display())));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
