//! The program `ddt` as processes that are watched and killed, and a client of `ddt serve` that sends any bytes.

#![forbid(unsafe_code)]

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// A running server, which is killed when it is dropped.
#[derive(Debug)]
pub struct Program {
    child: Child,
    // A closed pipe would end the program.
    _stdout: BufReader<ChildStdout>,
    /// Host and port.
    pub address: String,
}

impl Program {
    /// Starts the program of this build on a port, 0 for any, with further flags.
    ///
    /// # Errors
    /// A program that was not built, or prints no address.
    pub fn start(port: u16, flags: &[&str]) -> Result<Self> {
        let program = built("ddt")?;
        let mut command = Command::new(&program);
        command.args(["--quiet", "serve", "--weights", "demo", "--port", &port.to_string()]).args(flags);
        let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start ddt")?;
        let mut stdout = BufReader::new(child.stdout.take().context("no output")?);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        let address = line.trim().strip_prefix("http://").and_then(|it| it.strip_suffix('/'));
        let address = address.with_context(|| format!("expected an address, got {line:?}"))?.to_owned();
        Ok(Self { child, _stdout: stdout, address })
    }

    /// Whether the server still runs.
    ///
    /// # Errors
    /// None in practice.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Number of the process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Largest memory so far, in bytes, where the system says it.
    #[must_use]
    pub fn peak_memory(&self) -> Option<u64> {
        memory(self.id(), "VmHWM")
    }

    /// Kills it, as a crash would.
    ///
    /// # Errors
    /// None in practice.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill().ok();
    }
}

/// A process's memory, in bytes, where Linux says it: `VmRSS` now, `VmHWM` at most so far.
#[must_use]
pub fn memory(process: u32, field: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|it| it.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// A program of this build, beside the one that runs.
///
/// # Errors
/// One that was not built.
pub fn built(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.parent().context("no folder")?;
    let folder = if folder.ends_with("deps") { folder.parent().context("no folder")? } else { folder };
    let program = folder.join(name);
    ensure!(program.is_file(), "there is no {}; build it first: cargo build -p ddt-cli", program.display());
    Ok(program)
}

/// A connection that waits for an answer for a minute.
///
/// # Errors
/// A server that does not accept it.
pub fn connect(address: &str) -> Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.set_write_timeout(Some(Duration::from_secs(60)))?;
    Ok(stream)
}

/// An answer of a server.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Seconds of `Retry-After`, 0 without.
    pub retry_after: u64,
    /// Its body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// A body of another form.
    pub fn json(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&self.body)?)
    }
}

/// Sends a request with a body of JSON, if there is one, and reads the answer.
///
/// # Errors
/// A connection that ends before the answer does.
pub fn request(address: &str, line: &str, client: &str, body: &str) -> Result<Answer> {
    let mut stream = connect(address)?;
    write!(
        stream,
        "{line} HTTP/1.1\r\nhost: {address}\r\nddt-client: {client}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    answer(&mut BufReader::new(stream))
}

/// Reads an answer.
///
/// # Errors
/// A connection that ends before the answer does.
pub fn answer(reader: &mut impl BufRead) -> Result<Answer> {
    let (mut answer, mut length) = (Answer { status: 0, retry_after: 0, body: Vec::new() }, 0);
    loop {
        let mut line = String::new();
        ensure!(reader.read_line(&mut line)? > 0, "the connection ended");
        let line = line.trim_end().to_lowercase();
        if answer.status == 0 {
            answer.status = line.split(' ').nth(1).and_then(|it| it.parse().ok()).context("no status")?;
        } else if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse()?;
        } else if let Some(value) = line.strip_prefix("retry-after: ") {
            answer.retry_after = value.parse()?;
        } else if line.is_empty() {
            answer.body.resize(length, 0);
            reader.read_exact(&mut answer.body)?;
            return Ok(answer);
        }
    }
}

/// Names of the events of a job, as they come; dropped, the client goes away.
#[derive(Debug)]
pub struct Events(BufReader<TcpStream>);

impl Events {
    /// Follows a job.
    ///
    /// # Errors
    /// A server that does not accept the connection.
    pub fn follow(address: &str, job: &str) -> Result<Self> {
        let mut stream = connect(address)?;
        write!(stream, "GET {job}/events HTTP/1.1\r\nhost: {address}\r\n\r\n")?;
        Ok(Self(BufReader::new(stream)))
    }
}

impl Iterator for Events {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).ok().filter(|it| *it > 0)?;
            match line.trim_end() {
                "0" => return None,
                line => {
                    if let Some(name) = line.strip_prefix("event: ") {
                        return Some(name.to_owned());
                    }
                }
            }
        }
    }
}
