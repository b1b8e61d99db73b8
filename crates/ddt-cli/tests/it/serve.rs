//! `ddt serve` as a process; its interface has tests of its own in the program.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::{Command, Stdio},
};

use crate::{command, refuse};

#[test]
fn an_address_is_printed_served_and_left() {
    let folder = tempfile::tempdir().unwrap();
    let line = "--quiet serve --port 0 --token long-enough";
    let mut child = command(folder.path(), line).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut address = String::new();
    stdout.read_line(&mut address).unwrap();
    let host = address.trim().strip_prefix("http://").and_then(|it| it.strip_suffix("/?token=long-enough"));
    let host = host.unwrap_or_else(|| panic!("{address:?}"));
    let mut stream = TcpStream::connect(host).unwrap();
    write!(stream, "GET /api/health HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"status\":\"ok\""), "{answer}");

    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!((child.wait().unwrap().code(), rest.as_str()), (Some(0), "stopped\n"));
}

#[test]
fn flags_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    refuse(folder.path(), &format!("serve --port {port}"), 1, &["cannot listen on 127.0.0.1", "in use"]);
    refuse(folder.path(), "serve --token short", 2, &["at least 8"]);
    refuse(folder.path(), "serve --queue 0", 2, &["--queue"]);
}
