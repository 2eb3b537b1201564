//! The broker's HTTP side, as far as an agent asks it, with or without TLS.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use muster_protocol::keys::{BrokerKeyState, PrivateKey, Purpose, SignedText};
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::wire::{
    Authority, Credentials, CredentialsAnswer, CredentialsRequest, EnrollRequest, Trust, proof_text,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::lab::Cluster;

pub struct State {
    pub cluster: Cluster,
    /// Signs in place of the cluster's keys, for a broker that lies.
    pub root: PrivateKey,
    pub signer: PrivateKey,
    pub certificate: Option<String>,
    pub token: String,
    pub used: bool,
    pub credentials: Option<Credentials>,
    pub nats: String,
    pub nats_key: String,
    pub removed: bool,
    pub asked: Vec<String>,
}

#[derive(Clone)]
pub struct Http {
    pub url: String,
    pub state: Arc<Mutex<State>>,
}

/// A certificate authority and a server certificate by it.
pub struct Tls {
    pub ca: String,
    pub config: Arc<rustls::ServerConfig>,
}

impl Tls {
    pub fn new() -> Self {
        muster_agent::install_crypto();
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).unwrap();
        let issuer = rcgen::Issuer::new(params, ca_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let leaf = params.signed_by(&key, &issuer).unwrap();
        let private = rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], private)
            .unwrap();
        Self {
            ca: ca.pem(),
            config: Arc::new(config),
        }
    }
}

impl Http {
    pub async fn start(cluster: &Cluster, tls: Option<&Tls>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let invite =
            muster_protocol::api::InviteToken::generate(cluster.root.public().fingerprint());
        let state = Arc::new(Mutex::new(State {
            cluster: cluster.clone(),
            root: cluster.root.clone(),
            signer: cluster.broker.clone(),
            certificate: tls.map(|t| t.ca.clone()),
            token: invite.text().expose().to_owned(),
            used: false,
            credentials: None,
            nats: "nats://127.0.0.1:1".into(),
            nats_key: String::new(),
            removed: false,
            asked: Vec::new(),
        }));
        let acceptor = tls.map(|t| tokio_rustls::TlsAcceptor::from(t.config.clone()));
        let shared = state.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (state, acceptor) = (shared.clone(), acceptor.clone());
                tokio::spawn(async move {
                    match acceptor {
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                serve(stream, state).await;
                            }
                        }
                        None => serve(stream, state).await,
                    }
                });
            }
        });
        Self { url, state }
    }

    pub fn token(&self) -> String {
        self.state.lock().unwrap().token.clone()
    }
}

async fn serve<S>(stream: S, state: Arc<Mutex<State>>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let state = state.clone();
        async move {
            let path = format!("{} {}", request.method(), request.uri().path());
            let body = read(request.into_body()).await;
            let (status, answer) = match handle(&mut state.lock().unwrap(), &path, &body) {
                Ok(answer) => (200, answer),
                Err(problem) => (problem.status, serde_json::to_value(problem).unwrap()),
            };
            Ok::<_, Infallible>(
                Response::builder()
                    .status(status)
                    .body(answer.to_string())
                    .unwrap(),
            )
        }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn read(mut body: Incoming) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(Ok(frame)) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await
    {
        if let Ok(data) = frame.into_data() {
            all.extend_from_slice(&data);
        }
    }
    all
}

fn handle(state: &mut State, path: &str, body: &[u8]) -> Result<Value, Box<Problem>> {
    state.asked.push(path.to_owned());
    let challenge = "a challenge";
    let root = state.root.public();
    match path {
        "GET /v1/trust" => {
            let authority = Authority {
                cluster: state.cluster.id,
                certificate: state.certificate.clone(),
            };
            Ok(json!(Trust {
                root,
                keys: state.cluster.first_list(),
                authority: SignedText::sign(&state.cluster.root, Purpose::Authority, &authority),
            }))
        }
        "POST /v1/agent/challenge" => Ok(json!({ "challenge": challenge })),
        "POST /v1/enroll" => {
            let request: EnrollRequest = serde_json::from_slice(body).unwrap();
            let text = proof_text(&root, challenge, &request.nats_key);
            request
                .node_key
                .verify(Purpose::NodeProof, &text, &request.proof)
                .unwrap();
            assert_eq!(
                (request.challenge.as_str(), request.token.as_str()),
                (challenge, state.token.as_str())
            );
            if state.used {
                let problem = Problem::new(Kind::Conflict, "this invite was used already")
                    .hint("make a new one");
                return Err(Box::new(problem));
            }
            state.used = true;
            let mut credentials = state.credentials.clone().unwrap_or_else(|| {
                let keys = muster_agent::identity::NodeKeys::generate();
                state.cluster.credentials(&keys, &state.nats)
            });
            credentials.node_key = request.node_key;
            state.nats_key = request.nats_key;
            state.credentials = Some(credentials.clone());
            Ok(answer(state, &credentials))
        }
        "POST /v1/agent/credentials" => {
            let request: CredentialsRequest = serde_json::from_slice(body).unwrap();
            if state.removed {
                return Err(Box::new(Problem::new(
                    Kind::Denied,
                    "this node was removed",
                )));
            }
            let credentials = state.credentials.clone().unwrap();
            let text = proof_text(&root, challenge, &state.nats_key);
            credentials
                .node_key
                .verify(Purpose::NodeProof, &text, &request.proof)
                .unwrap();
            assert_eq!(request.serial, credentials.serial);
            Ok(answer(state, &credentials))
        }
        _ => Err(Box::new(Problem::new(Kind::NotFound, "no such route"))),
    }
}

fn answer(state: &State, credentials: &Credentials) -> Value {
    json!(CredentialsAnswer {
        credentials: SignedText::sign(&state.signer, Purpose::Credentials, credentials),
        keys: state
            .cluster
            .list(1, &[(&state.cluster.broker, BrokerKeyState::Active)]),
    })
}
