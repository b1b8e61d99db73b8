//! The page's files and the headers of all answers.

use serde_json::{Value, json};

use super::{Server, Setup, undivided};

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
    assert_eq!(names(&presets), ["default", "exact", "high", "fast"]);
    assert_eq!(presets["presets"][3]["settings"]["sharing"], "ratio:0.75,order:2");
    assert_eq!(
        (&presets["pipeline"]["weights"]["from"], &presets["can_share"], &presets["can_measure"]),
        (&"demo".into(), &true.into(), &true.into())
    );
}

fn names(presets: &Value) -> Vec<&str> {
    presets["presets"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect()
}

#[test]
fn a_network_without_two_halves_is_compared_but_not_measured() {
    let server = Server::waiting(Setup { pipeline: undivided(), ..Setup::default() });
    let presets = server.get("/api/presets").json();
    assert_eq!(names(&presets), ["default", "exact"]);
    assert_eq!((&presets["can_share"], &presets["can_measure"]), (&false.into(), &false.into()));
    let settings: Vec<&Value> =
        presets["presets"].as_array().unwrap().iter().map(|it| &it["settings"]).collect();
    let request = json!({ "classes": [7], "images_per_class": 1, "seed": 0 });
    let job = server.submit(&json!({ "generate": { "request": request, "settings": settings } }));
    assert_eq!(server.events(&job).last().unwrap().0, "done");
    let refused = server.submit_as("one", &json!({ "measure": { "images": 1 } }));
    assert_eq!((refused.status, refused.error().contains("a network of two halves")), (422, true));
}
