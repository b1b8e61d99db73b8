//! The page's files and the headers of all answers.

use super::{Server, Setup};

#[test]
fn every_file_of_the_page_is_served_and_nothing_comes_from_elsewhere() {
    let server = Server::waiting(Setup::default());
    let page = String::from_utf8(server.get("/").body).unwrap();
    let mut files: Vec<String> = page
        .split(['"', '\''])
        .filter(|it| it.starts_with('/') && it.len() > 1 && !it.contains('>'))
        .map(str::to_owned)
        .collect();
    assert!(files.len() >= 2, "{files:?}");
    while let Some(path) = files.pop() {
        let file = server.get(&path);
        assert_eq!(file.status, 200, "{path}");
        let text = String::from_utf8(file.body).unwrap();
        assert!(!text.contains("http://") && !text.contains("https://"), "{path} names another server");
        let imports = text.lines().filter(|it| it.starts_with("import"));
        files.extend(
            imports.filter_map(|it| it.split('"').nth(1)).map(str::to_owned).filter(|it| *it != path),
        );
    }
}

#[test]
fn all_answers_have_the_headers_of_safety() {
    let server = Server::waiting(Setup::default());
    for path in ["/", "/studio.js", "/api/presets", "/api/jobs/absent", "/nothing"] {
        let answer = server.get(path);
        let policy = answer.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{path}");
        assert_eq!(
            (answer.header("x-content-type-options"), answer.header("cache-control")),
            ("nosniff", "no-store")
        );
    }
}

#[test]
fn presets_and_classes_are_what_the_form_needs() {
    let server = Server::waiting(Setup::default());
    let classes = server.get("/api/classes").json();
    assert_eq!((classes.as_array().unwrap().len(), &classes[7]), (10, &"horse".into()));
    let presets = server.get("/api/presets").json();
    let names: Vec<&str> =
        presets["presets"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["default", "exact", "high", "fast"]);
    assert_eq!(presets["presets"][3]["settings"]["sharing"], "ratio:0.75,order:2");
    assert_eq!(
        (&presets["pipeline"]["weights"]["from"], &presets["can_share"]),
        (&"demo".into(), &true.into())
    );
}
