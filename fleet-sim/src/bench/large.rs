//! What the API costs with a large fleet: lists of nodes, and judging a run by
//! many policies.

use std::path::Path;

use serde_json::{Value, json};

use super::BenchError;
use super::figures::{Row, Spread, Unit};
use super::http::{Api, quoted};
use super::work::settle;
use super::world::{Programs, Started, World};

/// Racks and zones: no divisor in common, so that there are as many different
/// pairs as the product says.
const RACKS: u32 = 25;
const ZONES: u32 = 8;
/// Policies.
const POLICIES: usize = 100;
/// The largest page of a list.
const PAGE: usize = 1_000;
/// How often each is measured, after a few that do not count.
const TIMES: usize = 41;
const WARM: usize = 3;
/// The targets, in milliseconds.
const LIST: f64 = 20.0;
const JUDGE: f64 = 50.0;

/// Policies that all concern runs of one principal: it may run what it wants
/// on the nodes of role web, and nothing of the rest applies. Four fifths look
/// at the nodes, so they are asked anew for each kind of them.
fn policies() -> String {
    let mut text = String::from(
        "@id(\"all\") permit (principal in Role::\"admin\", action, resource);\n\
         @id(\"team\") permit (principal in Group::\"team\", action == Action::\"run\", resource)\n\
         when { resource.roles.contains(\"web\") && context.whole <= 100000 };\n",
    );
    for n in 2..POLICIES {
        let rule = match n % 5 {
            0 => format!(
                "permit (principal in Group::\"team\", action == Action::\"run\", resource)\n\
                 when {{ context.scenario == \"deploy-{n}\" && context.hour < 6 }};\n"
            ),
            1 => format!(
                "forbid (principal, action == Action::\"run\", resource)\n\
                 when {{ resource.hasTag(\"rack\") && resource.getTag(\"rack\") == \"x{n}\" }};\n"
            ),
            2 => format!(
                "permit (principal in Group::\"team\", action == Action::\"run\", resource)\n\
                 when {{ resource.roles.contains(\"db-{n}\") && context.mode == \"check\" }};\n"
            ),
            3 => format!(
                "forbid (principal in Group::\"team\", action == Action::\"run\", resource)\n\
                 when {{ resource.hasTag(\"zone\") && [\"a{n}\", \"b{n}\", \"c{n}\"].contains(resource.getTag(\"zone\")) }}\n\
                 unless {{ context.params.hasTag(\"ticket\") }};\n"
            ),
            _ => format!(
                "@approvals(\"2\") permit (principal, action == Action::\"run\", resource)\n\
                 when {{ resource.roles.contains(\"web\") && resource.hasTag(\"rack\") && resource.getTag(\"rack\") like \"y{n}-*\" }};\n"
            ),
        };
        text.push_str(&format!("@id(\"rule {n}\") {rule}"));
    }
    text
}

const PRINCIPALS: &str =
    "[groups.team]\n\n[principals.ci-web]\nkind = \"ci\"\ngroups = [\"team\"]\n";

/// Measures one thing several times; `once` says how long it took.
fn several(mut once: impl FnMut() -> Result<f64, BenchError>) -> Result<Spread, BenchError> {
    for _ in 0..WARM {
        once()?;
    }
    let took = (0..TIMES).map(|_| once()).collect::<Result<Vec<_>, _>>()?;
    Spread::of(&took).ok_or_else(|| wrong("nothing was measured"))
}

fn wrong(why: impl Into<String>) -> BenchError {
    BenchError::Part {
        name: "a large fleet",
        why: why.into(),
    }
}

/// A page of nodes, which must be so long.
fn page(api: &mut Api, path: &str, wanted: usize) -> Result<(Value, f64), BenchError> {
    let (page, ms) = api.json("GET", path, None)?;
    match page["items"].as_array().map(Vec::len) {
        Some(found) if found == wanted => Ok((page, ms)),
        other => Err(wrong(format!("GET {path}: {other:?} nodes, not {wanted}"))),
    }
}

/// All nodes, page by page.
fn all(api: &mut Api, nodes: usize) -> Result<f64, BenchError> {
    let (mut took, mut seen, mut cursor) = (0.0, 0, String::new());
    loop {
        let path = format!("/v1/nodes?match=%2A&limit={PAGE}{cursor}");
        let (part, ms) = page(api, &path, PAGE.min(nodes - seen))?;
        took += ms;
        seen += PAGE.min(nodes - seen);
        match part["next"].as_str() {
            Some(next) => cursor = format!("&cursor={}", quoted(next)),
            None if seen == nodes => return Ok(took),
            None => return Err(wrong(format!("the list ends after {seen} nodes"))),
        }
    }
}

/// The rows of the table.
///
/// # Errors
/// [`BenchError`].
pub(super) fn rows(
    programs: &Programs,
    below: &Path,
    started: &Started,
    nodes: u32,
) -> Result<Vec<Row>, BenchError> {
    tracing::info!(nodes, "lists and policies");
    let world = World::start(programs, below, &[], started)?;
    let racks = format!("rack=r{{01..{RACKS}}}");
    let zones = format!("zone=z{{1..{ZONES}}}");
    let labels = ["--role", "web", "--label", &racks, "--label", &zones];
    let _fleet = world.fleet_with(nodes, &labels)?;
    settle();
    let mut api = Api::connect(world.address(), world.token())?;
    let count = nodes as usize;
    let kinds = (RACKS * ZONES) as usize;
    let some = count.div_ceil(kinds);
    let selective = quoted("rack=r01 and zone=z1 and not name=web-*");
    let few = format!("/v1/nodes?match={selective}&allow_unknown=true&limit={PAGE}");
    let few = several(|| Ok(page(&mut api, &few, some)?.1))?;
    let first = format!("/v1/nodes?match=%2A&limit={PAGE}");
    let first = several(|| Ok(page(&mut api, &first, PAGE.min(count))?.1))?;
    let whole = several(|| all(&mut api, count))?;
    let judged = judged(&world, &mut api, count, kinds.min(count))?;
    Ok(vec![
        Row::at_most(
            format!("GET /v1/nodes?match=…, {some} of {nodes} nodes"),
            Unit::Ms,
            few,
            LIST,
        ),
        Row::at_most(
            format!(
                "GET /v1/nodes?match=*, {} of {nodes} nodes",
                PAGE.min(count)
            ),
            Unit::Ms,
            first,
            LIST,
        ),
        Row::told(
            format!(
                "GET /v1/nodes?match=*, {nodes} nodes in {} pages",
                count.div_ceil(PAGE)
            ),
            Unit::Ms,
            whole,
        ),
        Row::at_most(
            format!("judging a run: {nodes} nodes, {kinds} sets of labels, {POLICIES} policies"),
            Unit::Ms,
            judged,
            JUDGE,
        ),
    ])
}

/// What a run on all nodes is allowed by. It is resolved, judged by the very
/// function that a run is judged by, and told class by class.
fn judged(world: &World, api: &mut Api, nodes: usize, kinds: usize) -> Result<Spread, BenchError> {
    world.policies(&policies(), PRINCIPALS)?;
    let ask = json!({
        "principal": "ci-web", "action": "run", "scenario": "command",
        "params": { "argv": ["true"] }, "predicate": "*",
    });
    several(|| {
        let (said, ms) = api.json("POST", "/v1/policy/explain", Some(&ask))?;
        let classes = said["judged"].as_array().map_or(&[][..], Vec::as_slice);
        let covered: u64 = classes.iter().filter_map(|c| c["nodes"].as_u64()).sum();
        if said["allowed"] != true || classes.len() != kinds || covered != nodes as u64 {
            return Err(wrong(format!(
                "a run was judged wrongly: allowed {}, {} kinds of nodes, {covered} nodes",
                said["allowed"],
                classes.len()
            )));
        }
        Ok(ms)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_policies_as_is_said() {
        let policies = policies();
        assert_eq!(policies.matches("@id(").count(), POLICIES);
        // Four fifths look at the nodes.
        let looks = policies
            .split("@id(")
            .filter(|one| one.contains("resource."));
        assert_eq!(looks.count(), POLICIES * 4 / 5);
    }
}
