//! Memory and open files of processes over time, and their slopes.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    sync::{Mutex, MutexGuard, PoisonError},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use ddt_system_tests::memory;

const EVERY: Duration = Duration::from_secs(5);

/// Growth of memory that is none, in MiB per hour: less than a day's worth of a megabyte of log.
const FLAT: f64 = 1.0;

/// The processes that run, and what was seen of all.
pub(super) struct Watch {
    began: Instant,
    length: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    processes: Vec<(&'static str, u32)>,
    samples: Vec<Sample>,
    ended: bool,
}

struct Sample {
    role: &'static str,
    process: u32,
    minutes: f64,
    mebibytes: f64,
    files: usize,
}

/// Memory and open files of all processes of a role.
struct Summary {
    processes: usize,
    most_mebibytes: f64,
    most_files: usize,
    /// Of a role that one process had throughout: growth of memory in MiB per hour with half its 95 % interval, and
    /// of open files, by thirds of the time.
    growth: Option<((f64, f64), i64)>,
}

impl Watch {
    pub(super) fn new(length: Duration) -> Self {
        Self { began: Instant::now(), length, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, role: &'static str, process: u32) {
        self.state().processes.push((role, process));
    }

    pub(super) fn remove(&self, process: u32) {
        self.state().processes.retain(|it| it.1 != process);
    }

    pub(super) fn end(&self) {
        self.state().ended = true;
    }

    /// Looks at all processes until the end.
    pub(super) fn sample(&self) {
        while !self.state().ended {
            let minutes = self.began.elapsed().as_secs_f64() / 60.0;
            let mut state = self.state();
            for (role, process) in state.processes.clone() {
                let files = fs::read_dir(format!("/proc/{process}/fd")).map_or(0, Iterator::count);
                if let Some(bytes) = memory(process, "VmRSS") {
                    let mebibytes = bytes as f64 / f64::from(1 << 20);
                    state.samples.push(Sample { role, process, minutes, mebibytes, files });
                }
            }
            drop(state);
            sleep(EVERY);
        }
    }

    /// All that was seen.
    pub(super) fn csv(&self) -> String {
        let mut text = "minutes,role,process,mebibytes,files\n".to_owned();
        for it in &self.state().samples {
            writeln!(text, "{:.3},{:?},{},{:.2},{}", it.minutes, it.role, it.process, it.mebibytes, it.files)
                .ok();
        }
        text
    }

    /// One row a role.
    pub(super) fn table(&self) -> String {
        let mut text = "| process | times started | memory at most, MiB | growth, MiB per hour | open files at most | more of them at the end |\n\
                        |---|---:|---:|---:|---:|---:|\n"
            .to_owned();
        for (role, it) in self.summaries() {
            let (memory, files) = match it.growth {
                Some(((slope, interval), files)) => {
                    (format!("{slope:.2} ± {interval:.2}"), files.to_string())
                }
                None => Default::default(),
            };
            let (started, most) = (it.processes, it.most_mebibytes);
            writeln!(text, "| {role} | {started} | {most:.0} | {memory} | {} | {files} |", it.most_files)
                .ok();
        }
        text
    }

    /// Requires that nothing grows in the processes that ran throughout.
    pub(super) fn check(&self) -> Result<()> {
        for (role, it) in self.summaries() {
            let Some(((slope, interval), files)) = it.growth else { continue };
            ensure!(
                slope - interval < FLAT,
                "{role}: memory grows by {slope:.2} ± {interval:.2} MiB per hour"
            );
            ensure!(files < 2, "{role}: {files} more open files at the end");
        }
        Ok(())
    }

    fn summaries(&self) -> BTreeMap<&'static str, Summary> {
        let state = self.state();
        let mut roles = BTreeMap::<_, Vec<&Sample>>::new();
        for it in &state.samples {
            roles.entry(it.role).or_default().push(it);
        }
        roles.into_iter().map(|(role, samples)| (role, self.summary(&samples))).collect()
    }

    fn summary(&self, samples: &[&Sample]) -> Summary {
        let mut processes: Vec<u32> = samples.iter().map(|it| it.process).collect();
        processes.dedup();
        // The first tenth is for start-up; what follows the soak's end runs alone.
        let minutes = self.length.as_secs_f64() / 60.0;
        let steady: Vec<&&Sample> =
            samples.iter().filter(|it| (minutes / 10.0..minutes).contains(&it.minutes)).collect();
        let throughout = steady.first().zip(steady.last()).filter(|(first, last)| {
            first.process == last.process && last.minutes - first.minutes > 0.8 * minutes
        });
        Summary {
            processes: processes.len(),
            most_mebibytes: samples.iter().map(|it| it.mebibytes).fold(0.0, f64::max),
            most_files: samples.iter().map(|it| it.files).max().unwrap_or(0),
            growth: throughout.and_then(|_| Some((slope(&minute_means(&steady))?, more_files(&steady)))),
        }
    }
}

/// Means of each minute, in hours and MiB: neighbouring samples say the same.
fn minute_means(samples: &[&&Sample]) -> Vec<(f64, f64)> {
    let mut minutes = BTreeMap::<u64, Vec<f64>>::new();
    for it in samples {
        minutes.entry(it.minutes as u64).or_default().push(it.mebibytes);
    }
    let mean = |of: Vec<f64>| of.iter().sum::<f64>() / of.len() as f64;
    minutes.into_iter().map(|(minute, of)| (minute as f64 / 60.0, mean(of))).collect()
}

/// Median of open files in the last third, less that in the first.
fn more_files(samples: &[&&Sample]) -> i64 {
    let third = samples.len() / 3;
    let median = |of: &[&&Sample]| {
        let mut files: Vec<usize> = of.iter().map(|it| it.files).collect();
        files.sort_unstable();
        files.get(files.len() / 2).map_or(0, |it| *it as i64)
    };
    median(&samples[samples.len() - third..]) - median(&samples[..third])
}

/// The slope of least squares, and half its 95 % interval.
fn slope(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    let count = points.len() as f64;
    if points.len() < 3 {
        return None;
    }
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|it| it.0), mean(|it| it.1));
    let spread: f64 = points.iter().map(|it| (it.0 - x).powi(2)).sum();
    let slope = points.iter().map(|it| (it.0 - x) * (it.1 - y)).sum::<f64>() / spread;
    let left: f64 = points.iter().map(|it| (it.1 - y - slope * (it.0 - x)).powi(2)).sum();
    Some((slope, 1.96 * (left / (count - 2.0) / spread).sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_and_its_interval_are_those_of_least_squares() {
        // numpy.polyfit([0, 1, 2, 3], [1, 2, 2, 4], 1, cov=True): slope 0.9, variance 0.07.
        let (slope, interval) = slope(&[(0.0, 1.0), (1.0, 2.0), (2.0, 2.0), (3.0, 4.0)]).unwrap();
        assert!((slope - 0.9).abs() < 1e-12 && (interval - 1.96 * 0.07_f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn only_what_ran_throughout_has_a_growth() {
        let watch = Watch::new(Duration::from_secs(600));
        for second in 0..120 {
            let minutes = f64::from(second) / 12.0;
            let sample = |role, process, mebibytes| Sample { role, process, minutes, mebibytes, files: 7 };
            // One grows by a MiB each minute; of the other role each process grows, and none lasts.
            watch.state().samples.push(sample("lasts", 1, 100.0 + minutes.floor()));
            watch.state().samples.push(sample("ends", 2 + second / 10, f64::from(second % 10)));
        }
        let summaries = watch.summaries();
        let ((slope, interval), files) = summaries["lasts"].growth.unwrap();
        assert!((slope - 60.0).abs() < 1e-9 && interval < 1e-9 && files == 0);
        assert!(summaries["ends"].growth.is_none() && summaries["ends"].processes == 12);
        assert!(watch.check().unwrap_err().to_string().contains("lasts: memory grows by 60.00"));
    }
}
