//! Chat: what a witness has heard, and who is who there.

use axum::extract::{Extension, State};
use muster_protocol::api::{
    ChatAnswer, ChatDevice, ChatDeviceRequest, ChatLine, ChatLink, MAX_CHAT_LINE,
};
use muster_protocol::problem::{Kind, Problem};
use muster_protocol::units::Timestamp;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::gate::Slot;
use super::{ApiError, ApiJson, AppState};
use crate::authz::{Action, Caller};
use crate::chat::desk;
use crate::chat::links::Linked;
use crate::chat::totp::TotpError;

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(hear))
        .routes(routes!(link))
        .routes(routes!(add_device, remove_device))
}

impl From<TotpError> for ApiError {
    fn from(error: TotpError) -> Self {
        match &error {
            TotpError::NoDevice(_) => Self::new(Kind::NotFound, error.to_string()),
            TotpError::Already(_) => Self::new(Kind::Conflict, error.to_string()),
            TotpError::Wrong | TotpError::Used | TotpError::TooMany => {
                Self::new(Kind::Denied, error.to_string())
            }
            TotpError::NotActive => super::problem::not_active(),
            TotpError::Store(_) => Self::storage(&error),
            TotpError::Secret(_) => Self::internal(&error),
        }
    }
}

/// Tell what was heard
///
/// A bot is a witness: it tells a line, who the network's server says wrote
/// it, and how sure that is. The broker reads the line, finds out who that is
/// here, judges and does it; the answer is what is to be said where the line
/// was heard. Also what nobody may do, or what is no command, is an answer. A
/// line with the same `id` does nothing a second time, and one that is older
/// than a minute does nothing at all. The token has to be of the principal
/// `irc:NETWORK`.
#[utoipa::path(
    post, path = "/v1/chat/lines", tag = "chat", request_body = ChatLine, security(("bearer" = [])),
    params(("Idempotency-Key" = Option<String>, Header, description = "Not needed: the line has an id")),
    responses((status = 200, body = ChatAnswer), (status = 400, body = Problem)),
    extensions(("x-authorisation" = json!("tell what was said in a chat network")))
)]
async fn hear(
    State(state): State<AppState>,
    witness: Caller,
    Extension(slot): Extension<Slot>,
    ApiJson(line): ApiJson<ChatLine>,
) -> Result<ApiJson<ChatAnswer>, ApiError> {
    if line.line.len() > MAX_CHAT_LINE {
        let most = format!("a line has at most {MAX_CHAT_LINE} bytes");
        return Err(ApiError::new(Kind::TooLarge, most));
    }
    state.admit(&witness, Action::Witness).await?;
    state.active()?;
    let answered = super::finish(async move {
        let wait = move || slot.give_back();
        desk::hear(&state, &witness, line, &wait).await
    });
    answered.await.map(ApiJson)
}

/// Make a link
///
/// A one-time code, for ten minutes: whoever writes `link CODE` to a bot is
/// the caller there, as long as the bot sees that connection without a break.
/// For networks without accounts.
#[utoipa::path(
    post, path = "/v1/chat/links", tag = "chat", security(("bearer" = [])),
    responses((status = 200, body = ChatLink)),
    extensions(("x-authorisation" = json!("ask who it is")))
)]
async fn link(
    State(state): State<AppState>,
    caller: Caller,
) -> Result<ApiJson<ChatLink>, ApiError> {
    state.authorize(&caller, Action::WhoAmI, ()).await?;
    state.active()?;
    let linked = Linked {
        principal: caller.principal,
        role: caller.role,
    };
    let (code, until) = state.desk.links.code(linked, Timestamp::now());
    Ok(ApiJson(ChatLink {
        code: code.expose().to_owned(),
        until,
    }))
}

/// Add a device for codes
///
/// Its secret, for the caller, shown once. With `replace` the one before ends.
#[utoipa::path(
    post, path = "/v1/chat/device", tag = "chat", request_body = ChatDeviceRequest, security(("bearer" = [])),
    responses((status = 200, body = ChatDevice), (status = 409, description = "There is one already", body = Problem)),
    extensions(("x-authorisation" = json!("ask who it is")))
)]
async fn add_device(
    State(state): State<AppState>,
    caller: Caller,
    ApiJson(request): ApiJson<ChatDeviceRequest>,
) -> Result<ApiJson<ChatDevice>, ApiError> {
    state.authorize(&caller, Action::WhoAmI, ()).await?;
    let added = super::finish(async move {
        let totps = &state.desk.totps;
        let device = totps
            .add(&caller.principal, request.replace, Timestamp::now())
            .await?;
        let text = format!(
            "{} has a device for one-time codes in chats",
            caller.principal
        );
        let events = &state.events;
        events
            .emit("principal.device", caller.principal.as_str(), text)
            .await;
        Ok::<_, TotpError>(ChatDevice {
            secret: device.secret.expose().to_owned(),
            url: device.url.expose().to_owned(),
        })
    });
    added.await.map(ApiJson)
}

/// Remove the device
///
/// Its codes count no more.
#[utoipa::path(
    delete, path = "/v1/chat/device", tag = "chat", security(("bearer" = [])),
    responses((status = 204), (status = 404, description = "There is none", body = Problem)),
    extensions(("x-authorisation" = json!("ask who it is")))
)]
async fn remove_device(
    State(state): State<AppState>,
    caller: Caller,
) -> Result<axum::http::StatusCode, ApiError> {
    state.authorize(&caller, Action::WhoAmI, ()).await?;
    super::finish(async move {
        state.desk.totps.remove(&caller.principal).await?;
        let text = format!(
            "{} has no device for one-time codes any more",
            caller.principal
        );
        let events = &state.events;
        events
            .emit("principal.device", caller.principal.as_str(), text)
            .await;
        Ok::<_, TotpError>(axum::http::StatusCode::NO_CONTENT)
    })
    .await
}
