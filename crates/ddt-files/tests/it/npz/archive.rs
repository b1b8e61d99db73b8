//! Archives of images: what comes out, and what is refused.

use std::fs;

use ddt_files::npz::{ArchiveJob, Dtype, ImageArchive, Next, NpzError, NpzFile, Shard};

use crate::npz::stub::{Run, paint};

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
    assert_eq!((images.dtype(), images.shape()), (Dtype::U8, &[10, 4, 4, 3][..]));
    let mut read = vec![0; 480];
    assert_eq!(images.rows(0..10).unwrap().read(&mut read).unwrap(), 10);
    assert_eq!(read, expected);
    let labels = npz.array("arr_1").unwrap();
    assert_eq!((labels.dtype(), labels.i64_values().unwrap()), (Dtype::I64, run.labels()));

    // Another reader, which compares the checksums too.
    let mut archive = zip::ZipArchive::new(fs::File::open(&run.path).unwrap()).unwrap();
    let mut content = Vec::new();
    std::io::copy(&mut archive.by_name("arr_0.npy").unwrap(), &mut content).unwrap();
    assert_eq!(content[content.len() - 480..], expected);
    content.clear();
    std::io::copy(&mut archive.by_name("arr_1.npy").unwrap(), &mut content).unwrap();
    assert_eq!(content.len(), 128 + 80);

    let manifest = fs::read(folder.path().join("images.npz.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["job"]["protocol"]["painter"], "stub");
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
    fs::create_dir_all(folder.path().join("images.npz.work/slots")).unwrap();
    assert!(ImageArchive::open(&run.path, &run.job()).unwrap().is_none());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn other_jobs_and_files_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let run = Run::new(&folder.path().join("images.npz"), 4, 2);
    let refused = |job: &ArchiveJob| ImageArchive::open(&run.path, job).unwrap_err();
    drop(open(&run));
    let other = ArchiveJob { batch: 3, ..run.job() };
    let message = refused(&other).to_string();
    assert!(
        message.contains("images.npz.work") && message.contains("batch is 2 there and 3 here"),
        "{message}"
    );
    run.finish().unwrap();
    let bytes = fs::read(&run.path).unwrap();
    let message = refused(&other).to_string();
    assert!(message.contains("images.npz.json") && message.contains("batch is 2 there"), "{message}");
    fs::remove_file(folder.path().join("images.npz.json")).unwrap();
    assert!(matches!(refused(&run.job()), NpzError::Exists { .. }));
    assert_eq!(fs::read(&run.path).unwrap(), bytes);

    let foreign = folder.path().join("foreign.npz");
    fs::create_dir(folder.path().join("foreign.npz.work")).unwrap();
    fs::write(folder.path().join("foreign.npz.work/thesis.txt"), "years").unwrap();
    assert!(matches!(ImageArchive::open(&foreign, &run.job()), Err(NpzError::Exists { .. })));
    assert_eq!(fs::read_dir(folder.path().join("foreign.npz.work")).unwrap().count(), 1);
    let missing = folder.path().join("missing/images.npz");
    assert!(matches!(ImageArchive::open(missing, &run.job()), Err(NpzError::Io { .. })));
    assert!(matches!(ImageArchive::open("..", &run.job()), Err(NpzError::NotAFile { .. })));
}

#[test]
fn what_does_not_fit_is_refused_and_can_be_put_right() {
    let folder = tempfile::tempdir().unwrap();
    let run = Run::new(&folder.path().join("images.npz"), 3, 2);
    let mut archive = open(&run);
    let Next::Batch(claim) = archive.next(Shard::ALONE).unwrap() else { panic!("expected a batch") };
    let message = archive.write(claim, &[0; 95]).unwrap_err().to_string();
    assert!(message.contains("expected 96 bytes for 2 images, got 95"), "{message}");
    assert_eq!(archive.finished_images(), 0);
    let message = archive.finish(&run.labels()).unwrap_err().to_string();
    assert!(message.contains("expected 3 images, got 3 fewer"), "{message}");
    let message = open(&run).finish(&[0]).unwrap_err().to_string();
    assert!(message.contains("number of labels: expected 3, got 1"), "{message}");
    assert!(!run.path.exists());
    // A file that came into the archive's place meanwhile stays.
    fs::write(&run.path, "mine").unwrap();
    assert!(matches!(run.finish(), Err(NpzError::Exists { .. })));
    assert_eq!(fs::read(&run.path).unwrap(), b"mine");
    fs::remove_file(&run.path).unwrap();
    assert_eq!(run.finish().unwrap(), 2);
}
