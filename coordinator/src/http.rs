//! Pages for people and probes: liveness, readiness, status, metrics. Served from copies of the loop's state.
//!
//! `/`: where the run stands, for people; also `/status` where a browser asks. `/livez` and `/healthz`: the process
//! answers. `/readyz`: the loop turned a moment ago and the run has not failed. `/status`, `/status.json`:
//! `adaptis_proto::message::Status` as JSON, `memory`, a `PeakMemory` for each plan and device, and `figures`, how many costs come
//! from where. `/metrics`: Prometheus text.

mod course;
mod door;
mod page;

pub(crate) use door::Door;

use crate::CoordinatorError;
use crate::snapshot::{Board, Snapshot};
use adaptis_proto::message::{PeakMemory, State as RunState, Status};
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// A loop that has not turned for longer is not ready.
const STALE: Duration = Duration::from_secs(5);
/// What open requests get when the coordinator ends.
const GRACE: Duration = Duration::from_secs(1);

/// The pages, served by a thread of their own.
pub(crate) struct Pages {
    stop: tokio::sync::oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Pages {
    /// Serves whoever comes to the door.
    pub(crate) fn serve(door: Door, board: Board) -> Result<Pages, CoordinatorError> {
        let address = door.address().to_owned();
        let failed = |source| CoordinatorError::Pages { address: address.clone(), source };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(failed)?;
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let serve = move || {
            runtime.block_on(async {
                let served = async { axum::serve(door.listen()?, router(board)).await };
                tokio::select! {
                    result = served => if let Err(error) = result {
                        tracing::error!(%error, "pages are no longer served");
                    },
                    _ = stopped => {}
                }
            });
            runtime.shutdown_timeout(GRACE);
        };
        let thread = std::thread::Builder::new().name("pages".into()).spawn(serve).map_err(failed)?;
        Ok(Pages { stop, thread })
    }

    /// Stops serving.
    pub(crate) fn stop(self) {
        // The thread may have ended by itself.
        let _ = self.stop.send(());
        if self.thread.join().is_err() {
            tracing::error!("the thread of the pages panicked");
        }
    }
}

fn router(board: Board) -> Router {
    let alive = || async { "ok\n" };
    Router::new()
        .route("/", get(page))
        .route("/livez", get(alive))
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .route("/status", get(status))
        .route("/status.json", get(status_json))
        .route("/metrics", get(metrics))
        .layer(map_response(closing))
        .with_state(board)
}

/// One request a connection: those who come back leave room for others in between.
async fn closing(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

async fn ready(State(board): State<Board>) -> Response {
    let snapshot = board.read();
    if snapshot.taken.elapsed() > STALE {
        return (StatusCode::SERVICE_UNAVAILABLE, "the coordinator's loop does not turn\n").into_response();
    }
    match &snapshot.status.failure {
        Some(failure) => (StatusCode::SERVICE_UNAVAILABLE, format!("the run failed: {failure}\n")).into_response(),
        None => "ok\n".into_response(),
    }
}

async fn page(State(board): State<Board>) -> Response {
    let snapshot = board.read();
    let is_stale = snapshot.taken.elapsed() > STALE;
    ([(header::CACHE_CONTROL, "no-store"), (header::VARY, "accept")], Html(page::write(&snapshot, is_stale)))
        .into_response()
}

/// JSON, but for who prefers a page, as browsers do: they name `text/html` before anything else.
async fn status(State(board): State<Board>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match accept.trim_start().starts_with("text/html") {
        true => page(State(board)).await,
        false => status_json(State(board)).await,
    }
}

async fn status_json(State(board): State<Board>) -> Response {
    let snapshot = board.read();
    let figures = snapshot.figures.iter().map(|(source, count)| (source.as_str(), *count)).collect();
    let all = StatusAndMore { status: &snapshot.status, memory: &snapshot.memory, figures };
    ([(header::VARY, "accept")], Json(all)).into_response()
}

#[derive(Serialize)]
struct StatusAndMore<'a> {
    #[serde(flatten)]
    status: &'a Status,
    memory: &'a [PeakMemory],
    figures: BTreeMap<&'a str, u64>,
}

async fn metrics(State(board): State<Board>) -> Response {
    let mut registry = Registry::with_prefix("adaptis");
    registry.register_collector(Box::new(Metrics(board.read())));
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

#[derive(Debug)]
struct Metrics(Arc<Snapshot>);

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let status = &self.0.status;
        let gauges = [
            ("iteration", "Last complete iteration", Some(status.place.step.0 as f64)),
            ("epoch", "Plan in force", Some(status.place.epoch.0 as f64)),
            ("generation", "Membership in force", Some(status.place.generation.0 as f64)),
            ("term", "Reign", Some(status.term.0 as f64)),
            ("loss", "Loss of the last iteration", status.loss.map(f64::from)),
            ("iteration_duration_ns", "Duration of the last iteration", status.duration_ns.map(|ns| ns as f64)),
            ("iteration_predicted_ns", "What the simulator says of it", status.predicted_ns.map(|ns| ns as f64)),
            ("iteration_lower_bound_ns", "No plan takes less", status.lower_bound_ns.map(|ns| ns as f64)),
            ("training", "1 while the run goes on", Some(f64::from(u8::from(is_training(status.state))))),
        ];
        for (name, help, value) in gauges {
            if let Some(value) = value {
                gauge(&mut encoder, name, help, &[("", vec![], value)])?;
            }
        }
        self.encode_devices(&mut encoder)?;
        let figures = self.0.figures.iter();
        let figures: Vec<_> =
            figures.map(|(source, value)| ("", vec![("source", source.as_str())], *value as f64)).collect();
        gauge(&mut encoder, "figures", "Costs of a device, layer and phase, by where they come from", &figures)?;
        count(&mut encoder, "switches", "Changes of plan", &[(vec![], status.switches)])?;
        let counters: Vec<_> =
            status.counters.iter().map(|(name, value)| (vec![("name", name.as_str())], *value)).collect();
        count(&mut encoder, "events", "What was counted, by name", &counters)
    }
}

type Labels<'a> = Vec<(&'static str, &'a str)>;

impl Metrics {
    fn encode_devices(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Snapshot { status, health, .. } = &*self.0;
        type Reading = fn(&adaptis_proto::message::DeviceStatus) -> Option<f64>;
        let readings: [(&str, &str, Reading); 3] = [
            ("device_bubble", "Share of the last iteration measured in which it did not work", |device| device.bubble),
            ("device_slowdown", "Estimated, 1 = as its kind", |device| device.slowdown),
            ("device_peak_bytes", "Peak memory of the last iteration measured", |device| {
                device.peak_bytes.map(|of| of as f64)
            }),
        ];
        for (name, help, reading) in readings {
            let values: Vec<_> = status
                .devices
                .iter()
                .filter_map(|device| Some(("", vec![("device", device.name.as_str())], reading(device)?)))
                .collect();
            gauge(encoder, name, help, &values)?;
        }
        let of_agents: Vec<_> = health
            .iter()
            .flat_map(|health| {
                let labels = |name| vec![("device", health.device.as_str()), ("name", name)];
                health.readings.iter().map(move |(name, value)| ("", labels(name.as_str()), *value))
            })
            .collect();
        gauge(encoder, "device_reading", "What the device's agent reads, by name", &of_agents)
    }
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: &[(&str, Labels<'_>, f64)],
) -> Result<(), std::fmt::Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (_, labels, value) in values {
        ConstGauge::new(*value).encode(metric.encode_family(labels)?)?;
    }
    Ok(())
}

fn count(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: &[(Labels<'_>, u64)],
) -> Result<(), std::fmt::Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in values {
        ConstCounter::new(*value).encode(metric.encode_family(labels)?)?;
    }
    Ok(())
}

fn is_training(state: RunState) -> bool {
    matches!(state, RunState::Training | RunState::Searching | RunState::Preparing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;

    #[test]
    fn where_costs_come_from_is_a_gauge_and_no_count_of_events() {
        let board = Board::new();
        let figures = vec![("measured".to_owned(), 7), ("earlier_jobs".to_owned(), 5)];
        let status = Status { counters: vec![("hellos_refused".to_owned(), 2)], ..Status::default() };
        board.publish(Snapshot { status, figures, ..Snapshot::clone(&board.read()) });
        let mut registry = Registry::with_prefix("adaptis");
        registry.register_collector(Box::new(Metrics(board.read())));
        let mut text = String::new();
        encode(&mut text, &registry).expect("it is text");
        assert!(text.contains("# TYPE adaptis_figures gauge\n"), "{text}");
        assert!(text.contains("adaptis_figures{source=\"earlier_jobs\"} 5.0\n"), "{text}");
        let events: Vec<&str> = text.lines().filter(|line| line.starts_with("adaptis_events_total")).collect();
        assert_eq!(events, ["adaptis_events_total{name=\"hellos_refused\"} 2"]);
    }
}
