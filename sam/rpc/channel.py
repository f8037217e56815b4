"""A gRPC channel that spreads calls over all replicas of a service and survives the loss of some."""

from __future__ import annotations

import json
from importlib import resources

import grpc

from sam.rpc.credentials import channel_credentials
from sam.tls import Tls

MAX_MESSAGE_BYTES = 64 * 2**20
"""The largest message sent or received: several times the largest embedding or picture that is accepted."""


def open_channel(target: str, service_name: str, tls: Tls | None = None) -> grpc.aio.Channel:
    """Open a channel to all replicas of a service.

    Args:
        target: `host:port`, resolved again and again, so that each address behind the name is a replica; or any target
            that gRPC knows, such as `ipv4:10.0.0.1:50051,10.0.0.2:50051`.
        service_name: the service's full name, for health checks: replicas that report NOT_SERVING get no calls.
        tls: how to speak TLS; None: plain text.

    Raises:
        StartupError: a file of `tls` cannot be used.
    """
    options = _channel_options(service_name, tls)
    if tls is None:
        return grpc.aio.insecure_channel(_resolvable(target), options=options)
    return grpc.aio.secure_channel(_resolvable(target), channel_credentials(tls), options=options)


def open_blocking_channel(target: str, service_name: str, tls: Tls | None = None) -> grpc.Channel:
    """Open a channel for callers without an event loop; threads may share it. See `open_channel`."""
    options = _channel_options(service_name, tls)
    if tls is None:
        return grpc.insecure_channel(_resolvable(target), options=options)
    return grpc.secure_channel(_resolvable(target), channel_credentials(tls), options=options)


def open_replica_channel(
    target: str, service_name: str, tls: Tls | None = None, authority: str = ""
) -> grpc.aio.Channel:
    """Open a channel to one replica of a service: a call that it refuses fails at once, for the caller to go elsewhere.

    Args:
        target: its address, such as `ipv4:10.0.0.1:50051`.
        service_name: the service's full name: the channel is ready while the replica reports SERVING.
        tls: how to speak TLS; None: plain text.
        authority: the name, as `host:port`, by which the replica was found, for its certificate; empty: its address.

    Raises:
        StartupError: a file of `tls` cannot be used.
    """
    named = bool(tls and tls.server_name)
    options = [
        *_channel_options(service_name, tls, retries=False),
        *([("grpc.default_authority", authority)] if authority and not named else []),
    ]
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, channel_credentials(tls), options=options)


def _resolvable(target: str) -> str:
    schemes = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "xds:")
    return target if target.startswith(schemes) else f"dns:///{target}"


def _channel_options(service_name: str, tls: Tls | None, *, retries: bool = True) -> list[tuple[str, int | str]]:
    config = json.loads(resources.files("sam.rpc").joinpath("service_config.json").read_text())
    if not retries:
        del config["methodConfig"]
    config["healthCheckConfig"] = {"serviceName": service_name}
    named = [("grpc.ssl_target_name_override", tls.server_name)] if tls and tls.server_name else []
    return [
        *named,
        ("grpc.service_config", json.dumps(config)),
        # A record found by DNS must not be overruled by a service config in a TXT record.
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        # A call is only retried while its request fits; the default of 256 KiB leaves every picture out.
        ("grpc.per_rpc_retry_buffer_size", MAX_MESSAGE_BYTES),
        # A stopped replica still acknowledges TCP; pings find it, within 13 s.
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 3_000),
        # Without it the time-out above only begins to count after a minute (seen with gRPC 1.85).
        ("grpc.http2.ping_timeout_ms", 3_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.dns_min_time_between_resolutions_ms", 5_000),
        # A question that is lost, as while a container network's name server begins anew, is asked again after this;
        # by default new replicas were seen to wait for a minute.
        ("grpc.dns_ares_query_timeout", 3_000),
        # The defaults wait up to two minutes before a lost replica is tried again.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", int(retries)),
    ]
