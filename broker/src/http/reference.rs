//! `GET /reference`: the OpenAPI document as a page that people read. It is
//! whole in itself: no script, nothing from elsewhere.

use std::fmt::Write as _;
use std::sync::LazyLock;

use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use data_encoding::BASE64;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Front, document};

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;\
color:#1a1a1a;background:#fff}h2{margin-top:3rem;border-bottom:1px solid #ccc}h3{margin-top:2.5rem;font-family:monospace}\
table{border-collapse:collapse;width:100%;margin:.5rem 0}td,th{text-align:left;vertical-align:top;padding:.2rem .8rem .2rem 0;\
border-bottom:1px solid #eee}code{font-family:monospace;overflow-wrap:anywhere}nav a{margin-right:1rem}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}td,th{border-color:#333}h2{border-color:#555}a{color:#8ab4f8}}";

struct Page {
    html: String,
    policy: String,
}

static PAGE: LazyLock<Page> = LazyLock::new(|| {
    let hash: [u8; 32] = Sha256::digest(STYLE.as_bytes()).into();
    let document = serde_json::to_value(document()).unwrap_or_default();
    Page {
        html: render(&document),
        policy: format!(
            "default-src 'none'; style-src 'sha256-{}'; frame-ancestors 'none'",
            BASE64.encode(&hash)
        ),
    }
});

pub(super) fn routes() -> OpenApiRouter<Front> {
    OpenApiRouter::new().routes(routes!(reference))
}

/// This document, for people to read.
#[utoipa::path(
    get, path = "/reference", tag = "health", security(()),
    responses((status = 200, description = "the page", body = String, content_type = "text/html")),
    extensions(("x-authorisation" = json!("open: it is the same for everybody")))
)]
async fn reference() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, PAGE.policy.as_str()),
    ];
    (headers, PAGE.html.as_str()).into_response()
}

/// Text in HTML.
fn text(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    for c in raw.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// Prose: paragraphs, and code between back ticks.
fn prose(raw: &str) -> String {
    let mut out = String::new();
    for paragraph in raw.split("\n\n").filter(|p| !p.trim().is_empty()) {
        out.push_str("<p>");
        for (index, part) in paragraph.split('`').enumerate() {
            if index % 2 == 1 {
                let _ = write!(out, "<code>{}</code>", text(part));
            } else {
                out.push_str(&text(part));
            }
        }
        out.push_str("</p>\n");
    }
    out
}

/// What a schema is, in a few words, with links to those that have a name.
fn kind(schema: &Value) -> String {
    if let Some(name) = named(schema) {
        return format!("<a href=\"#schema-{0}\">{0}</a>", text(name));
    }
    for (word, between) in [("oneOf", " or "), ("anyOf", " or "), ("allOf", " and ")] {
        if let Some(all) = schema[word].as_array() {
            return all.iter().map(kind).collect::<Vec<_>>().join(between);
        }
    }
    if let Some(values) = schema["enum"].as_array() {
        let values: Vec<_> = values
            .iter()
            .map(|v| format!("<code>{}</code>", text(&v.to_string())))
            .collect();
        return values.join(", ");
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
        _ => vec!["anything"],
    };
    let format = schema["format"].as_str().map(|f| format!(" ({})", text(f)));
    let items = schema
        .get("items")
        .map(|items| format!(" of {}", kind(items)));
    format!(
        "{}{}{}",
        text(&types.join(" or ")),
        items.unwrap_or_default(),
        format.unwrap_or_default()
    )
}

fn named(schema: &Value) -> Option<&str> {
    schema["$ref"].as_str()?.rsplit('/').next()
}

fn fields(schema: &Value, out: &mut String) {
    for part in ["allOf", "oneOf", "anyOf"] {
        for inner in schema[part].as_array().into_iter().flatten() {
            if named(inner).is_none() {
                fields(inner, out);
            }
        }
    }
    let Some(properties) = schema["properties"].as_object() else {
        return;
    };
    let required: Vec<&str> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    out.push_str("<table><tr><th>field</th><th>what</th><th></th></tr>\n");
    for (name, about) in properties {
        let need = if required.contains(&name.as_str()) {
            ""
        } else {
            "may be absent"
        };
        let _ = writeln!(
            out,
            "<tr><td><code>{}</code></td><td>{}{}</td><td>{need}</td></tr>",
            text(name),
            kind(about),
            prose(about["description"].as_str().unwrap_or_default()),
        );
    }
    out.push_str("</table>\n");
}

fn operation(method: &str, path: &str, about: &Value, out: &mut String) {
    let anchor = format!("{method}-{path}");
    let _ = writeln!(
        out,
        "<h3 id=\"{0}\">{1} {2}</h3>\n{3}{4}",
        text(&anchor),
        method.to_uppercase(),
        text(path),
        prose(about["summary"].as_str().unwrap_or_default()),
        prose(about["description"].as_str().unwrap_or_default()),
    );
    let parameters: Vec<&Value> = about["parameters"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    if !parameters.is_empty() {
        out.push_str("<table><tr><th>parameter</th><th>in</th><th>what</th></tr>\n");
        for parameter in parameters {
            let _ = writeln!(
                out,
                "<tr><td><code>{}</code></td><td>{}</td><td>{}{}</td></tr>",
                text(parameter["name"].as_str().unwrap_or_default()),
                text(parameter["in"].as_str().unwrap_or_default()),
                kind(&parameter["schema"]),
                prose(parameter["description"].as_str().unwrap_or_default()),
            );
        }
        out.push_str("</table>\n");
    }
    for (content, schema) in about["requestBody"]["content"]
        .as_object()
        .into_iter()
        .flatten()
    {
        let _ = writeln!(
            out,
            "<p>Body: <code>{}</code>, {}</p>",
            text(content),
            kind(&schema["schema"])
        );
    }
    out.push_str("<table><tr><th>answer</th><th>body</th><th>when</th></tr>\n");
    for (status, answer) in about["responses"].as_object().into_iter().flatten() {
        let bodies: Vec<_> = answer["content"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(content, schema)| match schema.get("schema") {
                Some(schema) => kind(schema),
                None => format!("<code>{}</code>", text(content)),
            })
            .collect();
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td></tr>",
            text(status),
            bodies.join(" or "),
            prose(answer["description"].as_str().unwrap_or_default()),
        );
    }
    out.push_str("</table>\n");
}

fn render(document: &Value) -> String {
    let mut by_tag: Map<String, Value> = Map::new();
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        for (method, about) in item.as_object().into_iter().flatten() {
            if !about.is_object() {
                continue;
            }
            let tag = about["tags"][0].as_str().unwrap_or("others");
            let list = by_tag
                .entry(tag)
                .or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(list) = list {
                list.push(serde_json::json!([method, path, about]));
            }
        }
    }
    let title = document["info"]["title"].as_str().unwrap_or_default();
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{0} {1}: the HTTP API</title><style>{STYLE}</style></head><body>\n<h1>{0}: the HTTP API</h1>\n{2}\
         <p>For programs: <a href=\"/openapi.json\">/openapi.json</a></p>\n<nav>",
        text(title),
        text(document["info"]["version"].as_str().unwrap_or_default()),
        prose(document["info"]["description"].as_str().unwrap_or_default()),
    );
    for tag in by_tag.keys() {
        let _ = write!(out, "<a href=\"#tag-{0}\">{0}</a>", text(tag));
    }
    out.push_str("<a href=\"#schemas\">schemas</a></nav>\n");
    for (tag, list) in &by_tag {
        let _ = writeln!(out, "<h2 id=\"tag-{0}\">{0}</h2>", text(tag));
        for entry in list.as_array().into_iter().flatten() {
            let (method, path) = (entry[0].as_str(), entry[1].as_str());
            operation(
                method.unwrap_or_default(),
                path.unwrap_or_default(),
                &entry[2],
                &mut out,
            );
        }
    }
    out.push_str("<h2 id=\"schemas\">Schemas</h2>\n");
    for (name, schema) in document["components"]["schemas"]
        .as_object()
        .into_iter()
        .flatten()
    {
        let _ = writeln!(
            out,
            "<h3 id=\"schema-{0}\">{0}</h3>\n{1}",
            text(name),
            prose(schema["description"].as_str().unwrap_or_default())
        );
        if schema.get("properties").is_none() {
            let _ = writeln!(out, "<p>{}</p>", kind(schema));
        }
        fields(schema, &mut out);
    }
    out.push_str("</body></html>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_and_every_schema_is_on_the_page() {
        let document = serde_json::to_value(document()).unwrap();
        let html = &PAGE.html;
        for (path, item) in document["paths"].as_object().unwrap() {
            for method in item.as_object().unwrap().keys() {
                let heading = format!(">{} {path}</h3>", method.to_uppercase());
                assert!(html.contains(&heading), "{heading}");
            }
        }
        for name in document["components"]["schemas"]
            .as_object()
            .unwrap()
            .keys()
        {
            assert!(html.contains(&format!("id=\"schema-{name}\"")), "{name}");
        }
        for part in html.split("href=\"#").skip(1) {
            let anchor = part.split('"').next().unwrap();
            assert!(html.contains(&format!("id=\"{anchor}\"")), "{anchor}");
        }
        // Whole in itself, and nothing that runs.
        assert!(
            !html.contains("<script") && !html.contains("src=") && !html.contains("http-equiv")
        );
        assert!(!html.contains("href=\"http"));
    }

    #[test]
    fn text_is_never_markup() {
        let out = prose("a <b> `c<d>` \"e\" & 'f'");
        assert_eq!(
            out,
            "<p>a &lt;b&gt; <code>c&lt;d&gt;</code> &quot;e&quot; &amp; &#39;f&#39;</p>\n"
        );
    }
}
