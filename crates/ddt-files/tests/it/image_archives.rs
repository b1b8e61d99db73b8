//! Archives of images: their content, refusals, and processes that are killed while they fill one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use candle_core::DType;
use ddt_files::npz::{ArchiveJob, ImageArchive, Next, NpzFile, Shard};
use ddt_files::{FileError, FileSystem};
use serde::{Deserialize, Serialize};

use crate::builders::refused;

/// A job, and who does it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Run {
    path: PathBuf,
    count: usize,
    side: usize,
    batch: usize,
    rank: usize,
    world: usize,
    /// Time that an image takes.
    pause_us: u64,
}

impl Run {
    pub(crate) fn new(path: &Path, count: usize, batch: usize) -> Self {
        Self { path: path.to_owned(), count, side: 4, batch, rank: 0, world: 1, pause_us: 0 }
    }

    fn job(&self) -> ArchiveJob {
        let protocol = serde_json::json!({ "painter": "stub", "seed": 3 });
        ArchiveJob { count: self.count, height: self.side, width: self.side, batch: self.batch, protocol }
    }

    fn labels(&self) -> Vec<i64> {
        (0..self.count as i64).map(|it| it * 7 % 10).collect()
    }

    /// Works until the archive is finished; says how many batches it painted.
    fn finish(&self) -> Result<usize, FileError> {
        self.finish_on(&FileSystem::default())
    }

    pub(crate) fn finish_on(&self, system: &FileSystem) -> Result<usize, FileError> {
        let share = Shard::new(self.rank, self.world)?;
        let mut painted = 0;
        let Some(mut archive) = ImageArchive::open_on(system, &self.path, &self.job())? else {
            return Ok(painted);
        };
        loop {
            match archive.next(share)? {
                Next::Batch(claim) => {
                    let mut pixels = Vec::new();
                    for image in claim.images() {
                        paint(image, self.job().image_bytes(), &mut pixels);
                        std::thread::sleep(Duration::from_micros(self.pause_us));
                    }
                    archive.write(claim, &pixels)?;
                    painted += 1;
                }
                Next::Wait => std::thread::sleep(Duration::from_millis(5)),
                Next::Filled => {
                    archive.finish(&self.labels())?;
                    return Ok(painted);
                }
                Next::Complete => return Ok(painted),
            }
        }
    }
}

/// Appends an image's bytes.
fn paint(image: usize, bytes: usize, pixels: &mut Vec<u8>) {
    let mut state = (image as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    pixels.extend((0..bytes).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    }));
}

fn open(run: &Run) -> ImageArchive {
    ImageArchive::open(&run.path, &run.job()).unwrap().unwrap()
}

#[test]
fn the_archive_holds_every_image_and_label() {
    let folder = tempfile::tempdir().unwrap();
    let run = Run::new(&folder.path().join("images.npz"), 10, 4);
    assert_eq!(run.finish().unwrap(), 3);
    let mut expected = Vec::new();
    (0..10).for_each(|image| paint(image, 48, &mut expected));

    let npz = NpzFile::open(&run.path).unwrap();
    let images = npz.array("arr_0").unwrap();
    assert_eq!((images.dtype(), images.shape()), (DType::U8, &[10, 4, 4, 3][..]));
    let mut read = vec![0; 480];
    assert_eq!(images.rows(0..10).unwrap().read(&mut read).unwrap(), 10);
    assert_eq!(read, expected);
    let labels = npz.array("arr_1").unwrap();
    assert_eq!((labels.dtype(), labels.i64_values().unwrap()), (DType::I64, run.labels()));

    // Another reader, which compares the checksums too.
    let mut archive = zip::ZipArchive::new(fs::File::open(&run.path).unwrap()).unwrap();
    let mut content = Vec::new();
    std::io::copy(&mut archive.by_name("arr_0.npy").unwrap(), &mut content).unwrap();
    assert_eq!(content[content.len() - 480..], expected);
    let images_crc = format!("{:08x}", crc32fast::hash(&content));
    content.clear();
    std::io::copy(&mut archive.by_name("arr_1.npy").unwrap(), &mut content).unwrap();
    assert_eq!(content.len(), 128 + 80);

    let manifest = fs::read(folder.path().join("images.npz.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["job"]["protocol"]["painter"], "stub");
    assert_eq!(manifest["archive"]["images"]["crc32"], images_crc);
    assert_eq!(manifest["archive"]["bytes"], fs::metadata(&run.path).unwrap().len());
    assert_eq!(run.finish().unwrap(), 0);
}

#[test]
fn processes_share_the_work_in_any_number() {
    let folder = tempfile::tempdir().unwrap();
    let whole = Run::new(&folder.path().join("whole.npz"), 30, 2);
    whole.finish().unwrap();
    let shared = Run::new(&folder.path().join("shared.npz"), 30, 2);
    let painted: Vec<usize> = std::thread::scope(|scope| {
        let run = |rank| Run { rank, world: 3, pause_us: 500, ..shared.clone() };
        let threads: Vec<_> = (0..3).map(|rank| scope.spawn(move || run(rank).finish().unwrap())).collect();
        threads.into_iter().map(|it| it.join().unwrap()).collect()
    });
    assert_eq!(painted.iter().sum::<usize>(), 15, "{painted:?}");
    assert_eq!(fs::read(&whole.path).unwrap(), fs::read(&shared.path).unwrap());
    // Locks are between openings of a file, so two archives in one process are like two processes.
    let waiting = Run::new(&folder.path().join("waiting.npz"), 2, 2);
    let (mut first, mut second) = (open(&waiting), open(&waiting));
    let Next::Batch(claim) = first.next(Shard::ALONE).unwrap() else { panic!("expected a batch") };
    assert!(matches!(second.next(Shard::ALONE).unwrap(), Next::Wait));
    drop(claim);
    let Next::Batch(claim) = second.next(Shard::ALONE).unwrap() else { panic!("expected a batch") };
    second.write(claim, &[0; 96]).unwrap();
    first.refresh().unwrap();
    assert_eq!((first.finished_images(), second.finished_images()), (2, 2));
    assert!(matches!(first.next(Shard::ALONE).unwrap(), Next::Filled));
    second.finish(&[0, 1]).unwrap();
    first.finish(&[0, 1]).unwrap();
    assert!(waiting.path.exists());
}

#[test]
fn a_process_that_comes_late_finds_the_archive() {
    let folder = tempfile::tempdir().unwrap();
    let run = Run::new(&folder.path().join("images.npz"), 4, 2);
    let mut late = open(&run);
    run.finish().unwrap();
    assert!(matches!(late.next(Shard::ALONE).unwrap(), Next::Complete));
    assert!(ImageArchive::open(&run.path, &run.job()).unwrap().is_none());
    // What a kill after the last step leaves behind goes.
    fs::create_dir_all(folder.path().join("images.npz.work/batches")).unwrap();
    assert!(ImageArchive::open(&run.path, &run.job()).unwrap().is_none());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn other_jobs_and_files_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let run = Run::new(&folder.path().join("images.npz"), 4, 2);
    let open_as = |job: &ArchiveJob| ImageArchive::open(&run.path, job);
    drop(open(&run));
    let other = ArchiveJob { batch: 3, ..run.job() };
    let belongs = "it belongs to another job: batch is 2 there and 3 here";
    refused(open_as(&other), &format!("images.npz.work: {belongs}"));
    run.finish().unwrap();
    let bytes = fs::read(&run.path).unwrap();
    refused(open_as(&other), &format!("images.npz.json: {belongs}"));
    fs::remove_file(folder.path().join("images.npz.json")).unwrap();
    refused(open_as(&run.job()), "images.npz: it exists already");
    assert_eq!(fs::read(&run.path).unwrap(), bytes);

    let foreign = folder.path().join("foreign.npz");
    fs::create_dir(folder.path().join("foreign.npz.work")).unwrap();
    fs::write(folder.path().join("foreign.npz.work/thesis.txt"), "years").unwrap();
    refused(ImageArchive::open(&foreign, &run.job()), "foreign.npz.work: it exists already");
    assert_eq!(fs::read_dir(folder.path().join("foreign.npz.work")).unwrap().count(), 1);
    let missing = folder.path().join("missing/images.npz");
    assert!(matches!(ImageArchive::open(missing, &run.job()), Err(FileError::Io { .. })));
    refused(ImageArchive::open("..", &run.job()), "expected the path of a file");
}

#[test]
fn what_does_not_fit_is_refused_and_can_be_put_right() {
    let folder = tempfile::tempdir().unwrap();
    let run = Run::new(&folder.path().join("images.npz"), 3, 2);
    let mut archive = open(&run);
    let Next::Batch(claim) = archive.next(Shard::ALONE).unwrap() else { panic!("expected a batch") };
    refused(archive.write(claim, &[0; 95]), "expected 96 bytes for 2 images, got 95");
    assert_eq!(archive.finished_images(), 0);
    refused(archive.finish(&run.labels()), "expected 3 images, got 3 fewer");
    refused(open(&run).finish(&[0]), "number of labels: expected 3, got 1");
    assert!(!run.path.exists());
    // A file that came into the archive's place meanwhile stays.
    fs::write(&run.path, "mine").unwrap();
    refused(run.finish(), "it exists already");
    assert_eq!(fs::read(&run.path).unwrap(), b"mine");
    fs::remove_file(&run.path).unwrap();
    assert_eq!(run.finish().unwrap(), 2);
}

const RUN: &str = "DDT_NPZ_TEST_RUN";
const IMAGES: usize = 512;
const BATCH: usize = 4;
const KILLS: u64 = 20;

/// The process to kill: this test alone, run with a job in the environment; without one it is empty.
#[test]
fn child() {
    if let Some(run) = std::env::var_os(RUN) {
        let run: Run = serde_json::from_str(run.to_str().unwrap()).unwrap();
        run.finish().unwrap();
    }
}

fn start(run: &Run) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "image_archives::child", "--test-threads", "1"])
        .env(RUN, serde_json::to_string(run).unwrap())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Kills a process; false if it had come to its end.
fn kill(child: &mut Child) -> bool {
    let running = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    running
}

/// The archive and its description.
fn outcome(path: &Path) -> (Vec<u8>, Vec<u8>) {
    let folder = path.parent().unwrap();
    assert_eq!(fs::read_dir(folder).unwrap().count(), 2, "more than the archive and its description");
    (fs::read(path).unwrap(), fs::read(folder.join("images.npz.json")).unwrap())
}

fn uninterrupted() -> (Vec<u8>, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("images.npz");
    assert_eq!(Run::new(&path, IMAGES, BATCH).finish().unwrap(), IMAGES / BATCH);
    outcome(&path)
}

/// Numbers that differ from one to the next.
fn draw(number: u64, below: u64) -> u64 {
    let mut state = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    state ^= state >> 29;
    (state.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33) % below
}

#[test]
fn being_killed_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("images.npz");
    let run = Run { pause_us: 700, ..Run::new(&path, IMAGES, BATCH) };
    let mut killed = 0;
    for number in 0..KILLS {
        let mut child = start(&run);
        // A process takes some milliseconds to begin; the whole job takes it half a second.
        sleep(Duration::from_micros(4_000 + draw(number, 40_000)));
        killed += u64::from(kill(&mut child));
    }
    assert!(killed >= 5, "only {killed} processes were killed before their end");
    run.finish().unwrap();
    assert_eq!(outcome(&path), uninterrupted());
}

#[test]
fn others_take_over_from_one_that_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("images.npz");
    let run = |rank| Run { rank, world: 3, pause_us: 700, ..Run::new(&path, IMAGES, BATCH) };
    let mut children: Vec<Child> = (0..3).map(|rank| start(&run(rank))).collect();
    sleep(Duration::from_millis(60));
    assert!(kill(&mut children.remove(1)), "the archive was finished too early");
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(outcome(&path), uninterrupted());
}

#[test]
fn any_process_goes_on_where_several_were_killed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("images.npz");
    let run = |rank, world| Run { rank, world, pause_us: 700, ..Run::new(&path, IMAGES, BATCH) };
    let mut children: Vec<Child> = (0..3).map(|rank| start(&run(rank, 3))).collect();
    sleep(Duration::from_millis(60));
    for child in &mut children {
        kill(child);
    }
    assert!(!path.exists());
    // Another number of processes, and only one of them.
    run(4, 7).finish().unwrap();
    assert_eq!(outcome(&path), uninterrupted());
}
