//! Connections: how many, how slow, how large; and their end.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::Semaphore,
    time::sleep,
};
use tokio_io_timeout::TimeoutStream;

/// Largest request line and headers together, in bytes, and most headers.
const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;

/// Bounds of connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    pub(crate) connections: usize,
    /// Longest time until the head of a request is complete.
    pub(crate) head: Duration,
    /// Longest time that a client may refuse to take any byte.
    pub(crate) write: Duration,
}

/// Serves connections until `stop` is done, then lets answers that have begun end while `drained` is not done.
///
/// # Errors
/// None that one connection causes.
pub(crate) async fn listen(
    listener: TcpListener,
    router: Router,
    patience: Patience,
    stop: impl Future<Output = ()>,
    drained: impl Future<Output = ()>,
) -> Result<()> {
    let free = Arc::new(Semaphore::new(patience.connections));
    let graceful = GracefulShutdown::new();
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Out of file descriptors: others are closed in a while.
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        // One connection too many is closed at once, so that it holds nothing.
        let Ok(permit) = free.clone().try_acquire_owned() else { continue };
        // Events are small and due at once.
        stream.set_nodelay(true).ok();
        let connection = graceful.watch(serve(stream, router.clone(), patience));
        tokio::spawn(async move {
            // A client that breaks the rules ends its own connection.
            connection.await.ok();
            drop(permit);
        });
    }
    drop(listener);
    let deadline = async {
        drained.await;
        sleep(Duration::from_millis(500)).await;
    };
    tokio::select! {
        () = graceful.shutdown() => {}
        () = deadline => {}
    }
    Ok(())
}

type Connection<S> =
    http1::Connection<TokioIo<std::pin::Pin<Box<TimeoutStream<S>>>>, TowerToHyperService<Router>>;

/// Answers the requests of one connection.
pub(crate) fn serve<S: AsyncRead + AsyncWrite>(
    stream: S,
    router: Router,
    patience: Patience,
) -> Connection<S> {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(patience.write));
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.head)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(router))
}
