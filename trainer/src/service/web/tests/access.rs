//! Who is let in, what he may do, what is written down of it, and who is sent away.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_this_machine_everybody_looks_and_nobody_changes() {
    let page = Page::open(false, false).await;
    assert_eq!(page.get("/api/v1/fleet", "").await.status, 200);
    for host in ["evil.example", "10.0.0.7:8090"] {
        for path in ["/", "/api/v1/fleet", "/healthz", "/metrics"] {
            assert_eq!(page.get(path, &format!("Host: {host}\r\n")).await.status, 403, "{host} leads here, and is not this machine");
        }
    }
    let session = page.get("/api/v1/session", "").await.json();
    assert_eq!((&session["role"], &session["csrf"], &session["log_in"]), (&json!("viewer"), &Value::Null, &json!(false)));
    let refused = page.ask("POST", "/api/v1/rounds/start", "", "").await;
    assert_eq!((refused.status, refused.error().contains("operator")), (403, true));
    assert_eq!(page.login(OPERATOR).await.status, 401, "no token is configured");
    assert_eq!(page.wishes.all(), Vec::<String>::new());

    assert_eq!(page.get("/api/v1/nowhere", "").await.status, 404);
    assert!(page.get("/api/v1/nowhere", "").await.error().contains("openapi.json"));
    page.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_opens_what_its_role_may() {
    let page = Page::open(true, true).await;
    for path in ["/api/v1/fleet", "/api/v1/labels/1/frame.jpg", "/api/v1/session", "/metrics", "/api/v1/nowhere"] {
        let refused = page.get(path, "").await;
        assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some("Bearer")), "{path}");
        assert!(refused.error().contains("token"));
    }
    assert_eq!(page.get("/", "Host: centre.example\r\n").await.status, 200, "the page asks for the token itself");
    assert_eq!(page.get("/api/v1/fleet", &bearer(VIEWER)).await.status, 200);
    assert_eq!(page.get("/api/v1/fleet", &bearer("viewer-0123456789abcdeg")).await.status, 401);
    for (token, status) in [(VIEWER, 403), (OPERATOR, 200)] {
        assert_eq!(page.ask("POST", "/api/v1/releases/1/halt", &bearer(token), "").await.status, status, "{token}");
    }
    for path in ["/api/v1/releases/1/resume", "/api/v1/releases/1/promote", "/api/v1/releases/1/recall", "/api/v1/rounds/start"] {
        assert_eq!(page.ask("POST", path, &bearer(OPERATOR), "").await.status, 200, "{path}");
    }
    let refused = page.ask("POST", "/api/v1/releases/2/halt", &bearer(OPERATOR), "").await;
    assert_eq!((refused.status, refused.error().contains("halted already")), (409, true));
    for (counter, status) in [("7", 404), ("x", 400), ("-1", 400), ("99999999999999999999", 400)] {
        let refused = page.ask("POST", &format!("/api/v1/releases/{counter}/halt"), &bearer(OPERATOR), "").await;
        assert_eq!((refused.status, refused.error().contains("expected")), (status, true), "{counter}");
    }
    assert_eq!(page.get("/api/v1/rounds/start", &bearer(OPERATOR)).await.status, 405);
    assert_eq!(page.wishes.all(), ["halt 1", "resume 1", "promote 1", "recall 1", "start", "halt 2"]);

    let audit = page.audit();
    let lines: Vec<(&str, &str, &str)> = audit
        .iter()
        .map(|line| (line["role"].as_str().unwrap(), line["request"].as_str().unwrap(), line["outcome"].as_str().unwrap()))
        .collect();
    assert_eq!(lines[0], ("viewer", "POST /api/v1/releases/1/halt", "refused: this takes the role operator"));
    assert_eq!(lines[1..3], [("operator", "POST /api/v1/releases/1/halt", "asked"), ("operator", "POST /api/v1/releases/1/halt", "done")]);
    assert!(lines.last().unwrap().2.starts_with("not done: release 2 is halted"), "{lines:?}");
    assert!(audit.iter().all(|line| line["at_ms"].as_u64() > Some(1_700_000_000_000) && line["peer"] == "127.0.0.1"));
    let mode = std::fs::metadata(page.world.config.state_dir.join(audit::FILE)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    page.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_changes_only_with_its_csrf_token() {
    let page = Page::open(true, true).await;
    let entered = page.login(OPERATOR).await;
    assert_eq!((entered.status, &entered.json()["role"]), (200, &json!("operator")));
    let set = entered.header("set-cookie").unwrap();
    for part in ["HttpOnly", "SameSite=Strict", "Max-Age=43200", "Path=/"] {
        assert!(set.contains(part), "{set}");
    }
    let (cookie, csrf) = (entered.cookie(), entered.json()["csrf"].as_str().unwrap().to_owned());
    assert_eq!(page.get("/api/v1/fleet", &cookie).await.status, 200);
    assert_eq!(page.get("/api/v1/session", &cookie).await.json()["csrf"], csrf, "a page that is loaded anew goes on");
    let right = format!("X-CSRF-Token: {csrf}\r\n");
    for (header, status) in [("", 403), ("X-CSRF-Token: 0123456789abcdef0123456789abcdef\r\n", 403), (right.as_str(), 200)] {
        assert_eq!(page.ask("POST", "/api/v1/rounds/start", &format!("{cookie}{header}"), "").await.status, status, "{header}");
    }
    assert_eq!(page.wishes.all(), ["start"]);
    let looker = page.login(VIEWER).await;
    let headers = format!("{}X-CSRF-Token: {}\r\n", looker.cookie(), looker.json()["csrf"].as_str().unwrap());
    assert_eq!(page.ask("POST", "/api/v1/rounds/start", &headers, "").await.status, 403, "a viewer looks");

    assert_eq!(page.ask("POST", "/logout", &cookie, "").await.status, 403, "nor does another site log anybody out");
    assert_eq!(page.ask("POST", "/logout", &format!("{cookie}X-CSRF-Token: {csrf}\r\n"), "").await.status, 200);
    assert_eq!(page.get("/api/v1/fleet", &cookie).await.status, 401);
    assert_eq!(page.get("/api/v1/fleet", &looker.cookie()).await.status, 200);
    page.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_guesses_waits_and_who_knows_a_token_does_not() {
    let page = Page::open(true, true).await;
    let cookie = page.login(VIEWER).await.cookie();
    let plain = page.ask("POST", "/login", "Content-Type: text/plain\r\n", "{\"token\":\"x\"}").await;
    assert_eq!((plain.status, plain.error().contains("application/json")), (415, true), "a form of another site guesses for nobody");
    let kind = "Content-Type: application/json\r\n";
    let long = "x".repeat(2000);
    for (body, status) in [("", 400), ("{\"token\":1}", 400), ("{\"token\":\"x\",\"more\":1}", 400), (long.as_str(), 413)] {
        assert_eq!(page.ask("POST", "/login", kind, body).await.status, status);
    }
    for _ in 0..3 {
        assert_eq!(page.login("a guess").await.status, 401);
    }
    assert_eq!(page.get("/metrics", &bearer("another guess")).await.status, 401);
    let later = page.login("a guess").await;
    assert_eq!((later.status, later.header("retry-after").is_some()), (429, true));
    assert_eq!(page.get("/api/v1/fleet", &bearer("another guess")).await.status, 429);
    // Behind a proxy all have one address: who guesses locks nobody out, and nobody's success lets him guess on.
    assert_eq!(page.get("/api/v1/fleet", &bearer(OPERATOR)).await.status, 200);
    assert_eq!(page.login(OPERATOR).await.status, 200);
    assert_eq!(page.get("/api/v1/fleet", &cookie).await.status, 200);
    assert_eq!(page.login("a guess").await.status, 429);
    let wrong = page.audit().iter().filter(|line| line["outcome"] == "refused: a wrong token" && line["role"].is_null()).count();
    assert_eq!(wrong, 3, "what is not looked at fills no disk");
    page.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_and_large_requests_hold_nobody_up() {
    let page = Page::open(false, false).await;
    // Every place is taken by somebody who says nothing, or little.
    let mut idle = Vec::new();
    let starts = ["", "GET / HT", "GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: 1", "\r\n"];
    for said in starts.iter().cycle().take(PLACES) {
        let mut socket = TcpStream::connect(page.address).await.unwrap();
        socket.write_all(said.as_bytes()).await.unwrap();
        idle.push(socket);
    }
    let answer = tokio::time::timeout(Duration::from_secs(30), page.get("/healthz", "")).await.expect("a place is free again");
    assert_eq!(answer.status, 200);
    for mut socket in idle {
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(30), socket.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "a slow connection is closed");
    }
    // A head that is whole, and too large.
    let mut socket = TcpStream::connect(page.address).await.unwrap();
    let large = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Large: {}\r\n\r\n", "x".repeat(4 * MAX_HEAD));
    // It may be closed while it is still written.
    drop(socket.write_all(large.as_bytes()).await);
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(30), socket.read_to_end(&mut answer)).await.expect("a large head is refused");
    // Nothing came where the connection was closed before it was read; taken it is in no case.
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
    let small = page.get("/healthz", &format!("X-Large: {}\r\n", "x".repeat(MAX_HEAD / 2))).await;
    assert_eq!(small.status, 200, "half as large is taken");
    page.close().await;
}

#[tokio::test]
async fn a_page_that_was_not_asked_for_is_not_there() {
    let mut world = World::new();
    assert!(crate::service::web::open(&world.config).await.unwrap().is_none());
    world.config.web.bind = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    world.config.web.viewer_token_file = Some(world.dir.path().join("nowhere"));
    let told = crate::service::web::open(&world.config).await.err().unwrap();
    assert!(omnilabel_console::line(&told).contains("web.viewer_token_file"));
}
