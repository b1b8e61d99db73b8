//! The fastest ways of multiplying on a device, kept in a file: they are measured once, and later programs give the same
//! bits.

use std::collections::HashMap;
use std::fmt::Write;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::backend::GemmShape;

/// `0`: nothing is measured or read, and cuBLASLt's first suggestion is used.
const SWITCH: &str = "DDT_TUNE";

/// cuBLASLt's description of a way, the same for all programs with one version of the library.
pub(super) type Way = [u64; 8];

/// The ways by shape.
#[derive(Debug)]
pub(super) struct Tuning {
    /// None where there is no folder to keep it in.
    file: Option<PathBuf>,
    ways: HashMap<GemmShape, Way>,
}

impl Tuning {
    /// The file of this device and version of cuBLASLt in the user's cache folder; `None` where it is switched off.
    pub(super) fn of(device: &str, library: usize) -> Option<Self> {
        if std::env::var_os(SWITCH).is_some_and(|it| it == "0") {
            return None;
        }
        let set = |name: &str| std::env::var_os(name).filter(|it| !it.is_empty()).map(PathBuf::from);
        let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
        let named: String =
            device.chars().map(|it| if it.is_ascii_alphanumeric() { it } else { '-' }).collect();
        Some(Self::open(cache.map(|it| it.join("ddt").join("gemm").join(format!("{named}-{library}.txt")))))
    }

    fn open(file: Option<PathBuf>) -> Self {
        let ways = file.as_deref().map(read).unwrap_or_default();
        Self { file, ways }
    }

    pub(super) fn get(&self, shape: &GemmShape) -> Option<Way> {
        self.ways.get(shape).copied()
    }

    /// The ways, a line each.
    pub(super) fn text(&self) -> String {
        text(&self.ways)
    }

    /// Ways as [`text`](Self::text) gives them, kept nowhere.
    pub(super) fn of_text(text: &str) -> Self {
        Self { file: None, ways: text.lines().filter_map(parse).collect() }
    }

    /// Keeps a way, unless another program has kept one for this shape that the library takes; returns the kept one.
    /// Programs that measure the same shape at the same time take turns, so that all use the first one's.
    /// A file that cannot be written costs later programs time, and is no error.
    pub(super) fn keep(&mut self, shape: GemmShape, way: Way, takes: impl Fn(Way) -> bool) -> Way {
        // Given back when it is closed.
        let _turn = self.file.as_deref().and_then(turn);
        self.ways.extend(self.file.as_deref().map(read).unwrap_or_default());
        let kept = self.get(&shape).filter(|it| takes(*it)).unwrap_or(way);
        self.ways.insert(shape, kept);
        if let Some(file) = self.file.as_deref() {
            let _ = write(file, &self.ways);
        }
        kept
    }
}

/// Lines that do not fit are ignored: their shapes are measured again.
fn read(file: &Path) -> HashMap<GemmShape, Way> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().filter_map(parse).collect()
}

fn parse(line: &str) -> Option<(GemmShape, Way)> {
    let (shape, way) = line.split_once(':')?;
    let shape: Vec<usize> = shape.split_whitespace().map(|it| it.parse().ok()).collect::<Option<_>>()?;
    let way: Vec<u64> =
        way.split_whitespace().map(|it| u64::from_str_radix(it, 16).ok()).collect::<Option<_>>()?;
    let [m, n, k, with_bias, element, workspace] = shape.try_into().ok()?;
    Some((GemmShape { m, n, k, with_bias: with_bias == 1, element, workspace }, way.try_into().ok()?))
}

/// Waits for other programs that keep a way; none on file systems without locks.
fn turn(file: &Path) -> Option<File> {
    fs::create_dir_all(file.parent()?).ok()?;
    let lock = File::create(file.with_extension("lock")).ok()?;
    lock.lock().ok().map(|()| lock)
}

fn text(ways: &HashMap<GemmShape, Way>) -> String {
    let mut lines: Vec<String> = ways
        .iter()
        .map(|(shape, way)| {
            let GemmShape { m, n, k, with_bias, element, workspace } = shape;
            let mut line = format!("{m} {n} {k} {} {element} {workspace}:", usize::from(*with_bias));
            for part in way {
                // Writing to a string does not fail.
                let _ = write!(line, " {part:x}");
            }
            line
        })
        .collect();
    lines.sort();
    lines.join("\n") + "\n"
}

/// Whole or not at all: another program may read it at any time.
fn write(file: &Path, ways: &HashMap<GemmShape, Way>) -> std::io::Result<()> {
    fs::create_dir_all(file.parent().unwrap_or(Path::new(".")))?;
    let beside = file.with_extension(format!("{}.part", std::process::id()));
    fs::write(&beside, text(ways))?;
    fs::rename(beside, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_kept_way_stays_and_odd_lines_are_ignored() {
        let folder = std::env::temp_dir().join(format!("ddt-tuning-{}", std::process::id()));
        let file = folder.join("gpu.txt");
        let shape = |m| GemmShape { m, n: 2, k: 3, with_bias: true, element: 1, workspace: 4 };
        let mut one = Tuning::open(Some(file.clone()));
        let mut two = Tuning::open(Some(file.clone()));
        let taken = |_| true;
        assert_eq!(one.keep(shape(1), [7; 8], taken), [7; 8]);
        assert_eq!(two.keep(shape(1), [9; 8], taken), [7; 8]);
        assert_eq!(two.keep(shape(2), [1; 8], taken), [1; 8]);
        // One that the library refuses is replaced.
        assert_eq!(one.keep(shape(2), [u64::MAX; 8], |it| it != [1; 8]), [u64::MAX; 8]);
        let text = fs::read_to_string(&file).unwrap_or_default();
        assert_eq!(text.lines().count(), 2);
        assert!(fs::write(&file, text + "1 2 3: 4\nnothing\n1 2 3 1 1 4: x\n").is_ok());
        let later = Tuning::open(Some(file));
        assert_eq!([1, 2, 3].map(|m| later.get(&shape(m))), [Some([7; 8]), Some([u64::MAX; 8]), None]);
        assert!(fs::remove_dir_all(folder).is_ok());
        assert_eq!(Tuning::open(None).keep(shape(1), [1; 8], taken), [1; 8]);
        let copy = Tuning::of_text(&later.text());
        assert_eq!([1, 2, 3].map(|m| copy.get(&shape(m))), [Some([7; 8]), Some([u64::MAX; 8]), None]);
    }

    /// Locks are of open files, so threads stand for programs.
    #[test]
    fn programs_that_measure_at_the_same_time_keep_one_way() {
        let folder = std::env::temp_dir().join(format!("ddt-tuning-turns-{}", std::process::id()));
        let file = folder.join("gpu.txt");
        for m in 0..40 {
            let shape = GemmShape { m, n: 2, k: 3, with_bias: true, element: 1, workspace: 4 };
            let start = std::sync::Barrier::new(4);
            let kept: Vec<Way> = std::thread::scope(|scope| {
                let program = |number| {
                    let (file, start) = (file.clone(), &start);
                    scope.spawn(move || {
                        let mut tuning = Tuning::open(Some(file));
                        start.wait();
                        tuning.keep(shape, [number; 8], |_| true)
                    })
                };
                let programs: Vec<_> = (1..=4).map(program).collect();
                programs.into_iter().filter_map(|it| it.join().ok()).collect()
            });
            assert_eq!(kept, vec![kept[0]; 4], "shape {m}");
        }
        assert_eq!(Tuning::open(Some(file)).ways.len(), 40);
        assert!(fs::remove_dir_all(folder).is_ok());
    }
}
