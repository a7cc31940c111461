//! Makes the sockets of both ends: options, keys, monitor.

use zmq::{Context, Socket, SocketType};

use crate::{
    Error, Limits, Security, Step,
    address::Address,
    limits::{high_water, milliseconds},
};

/// Seconds of silence, seconds between probes and number of probes before the system gives a connection up.
const KEEPALIVE_IDLE_S: i32 = 30;
const KEEPALIVE_INTERVAL_S: i32 = 10;
const KEEPALIVE_COUNT: i32 = 3;
/// How long one attempt to connect may take: a host that is off does not answer at all.
const CONNECT_TIMEOUT_MS: i32 = 5_000;
/// Connections waiting to be accepted: every agent connects at once after a coordinator's restart.
const BACKLOG_LEN: i32 = 1024;

/// Named in questions to the gate; any text will do, but without one libzmq would not ask.
const DOMAIN: &str = "adaptis";

/// A ROUTER for a server.
pub(crate) fn router(
    context: &Context,
    address: &Address,
    security: &Security,
    limits: &Limits,
) -> Result<Socket, Error> {
    make(context, zmq::ROUTER, |socket| {
        set_common(socket, address, limits)?;
        // Without it a message for an absent peer vanishes; with it, it is counted.
        socket.set_router_mandatory(true)?;
        // A restarted peer has its name back at once, though its old connection may not have ended yet.
        socket.set_router_handover(true)?;
        socket.set_backlog(BACKLOG_LEN)?;
        if let Security::Curve(keyring) = security {
            socket.set_zap_domain(DOMAIN)?;
            socket.set_curve_server(true)?;
            socket.set_curve_secretkey(keyring.own().secret())?;
        }
        Ok(())
    })
}

/// A DEALER for a client.
pub(crate) fn dealer(
    context: &Context,
    address: &Address,
    identity: &str,
    security: &Security,
    limits: &Limits,
) -> Result<Socket, Error> {
    make(context, zmq::DEALER, |socket| {
        set_common(socket, address, limits)?;
        socket.set_identity(identity.as_bytes())?;
        socket.set_connect_timeout(CONNECT_TIMEOUT_MS)?;
        socket.set_reconnect_ivl(milliseconds(limits.reconnect_min))?;
        socket.set_reconnect_ivl_max(milliseconds(limits.reconnect_max))?;
        if let Security::Curve(keyring) = security {
            socket.set_curve_serverkey(keyring.server().as_bytes())?;
            socket.set_curve_publickey(keyring.own().public.as_bytes())?;
            socket.set_curve_secretkey(keyring.own().secret())?;
        }
        Ok(())
    })
}

fn make(
    context: &Context,
    kind: SocketType,
    set: impl FnOnce(&Socket) -> Result<(), zmq::Error>,
) -> Result<Socket, Error> {
    let socket = context.socket(kind).map_err(|error| Step::MakeSocket.failed(error))?;
    // Whatever happens before the thread has it, closing must not wait for ever.
    set(&socket).and_then(|()| socket.set_linger(0)).map_err(|error| Step::SetOption.failed(error))?;
    Ok(socket)
}

fn set_common(socket: &Socket, address: &Address, limits: &Limits) -> Result<(), zmq::Error> {
    socket.set_ipv6(address.is_ipv6())?;
    socket.set_maxmsgsize(i64::try_from(limits.message_bytes_max).unwrap_or(i64::MAX))?;
    socket.set_sndhwm(high_water(limits.per_peer_len))?;
    socket.set_rcvhwm(high_water(limits.per_peer_len))?;
    socket.set_handshake_ivl(milliseconds(limits.handshake_timeout))?;
    socket.set_heartbeat_ivl(milliseconds(limits.heartbeat_interval))?;
    socket.set_heartbeat_timeout(milliseconds(limits.heartbeat_timeout))?;
    socket.set_tcp_keepalive(1)?;
    socket.set_tcp_keepalive_idle(KEEPALIVE_IDLE_S)?;
    socket.set_tcp_keepalive_intvl(KEEPALIVE_INTERVAL_S)?;
    socket.set_tcp_keepalive_cnt(KEEPALIVE_COUNT)
}
