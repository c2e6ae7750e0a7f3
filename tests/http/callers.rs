//! Who may ask: pages in browsers, only where the operator says so.

use harness::http::{Client, Reply};
use harness::serving::{ServerSettings, TestServer};

fn server(allowed_origins: Vec<&'static str>) -> TestServer {
    TestServer::start(ServerSettings { allowed_origins, ..ServerSettings::roomy() })
}

fn ask(client: &Client, method: &str, origin: &str) -> Reply {
    let client = client.with_header("Origin", origin);
    let client = client.with_header("Access-Control-Request-Method", "POST");
    client.with_header("Access-Control-Request-Headers", "authorization").send(
        method,
        "/v1/models",
        b"",
    )
}

const ALLOW: &str = "access-control-allow-origin";

#[test]
fn browsers_are_told_nothing_unless_asked_for() {
    let server = server(Vec::new());
    for (method, status) in [("GET", 200), ("OPTIONS", 405)] {
        let reply = ask(&server.client, method, "https://a.example");
        assert_eq!((reply.status(), reply.head.header(ALLOW)), (status, None), "{method}");
        assert_eq!(reply.head.header("vary"), None, "{method}");
    }
}

#[test]
fn pages_of_an_allowed_origin_may_ask() {
    let server = server(vec!["https://a.example"]);
    let reply = ask(&server.client, "GET", "https://a.example");
    assert_eq!((reply.status(), reply.head.header(ALLOW)), (200, Some("https://a.example")));
    assert_eq!(reply.head.header("access-control-expose-headers"), Some("x-request-id"));
    let preflight = ask(&server.client, "OPTIONS", "https://a.example");
    assert_eq!(
        (preflight.status(), preflight.head.header(ALLOW)),
        (200, Some("https://a.example"))
    );
    assert_eq!(preflight.head.header("access-control-allow-headers"), Some("authorization"));
    assert_eq!(ask(&server.client, "GET", "https://b.example").head.header(ALLOW), None);
}
