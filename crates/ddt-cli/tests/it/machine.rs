//! `ddt fetch`, `ddt doctor`, `ddt completions`, and the program as a whole.

use crate::{command, ddt, refuse, succeed};

#[test]
fn fetching_where_the_hub_may_not_be_asked_names_the_ways_out() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    refuse(folder, &["fetch", "ddt-xl2-256"], 1, &["DDT-XL-22en6de-R256/model.ckpt", "HF_HUB_OFFLINE"]);
    refuse(folder, &["fetch", "nothing"], 1, &["OWNER/NAME/FILE"]);
    refuse(folder, &["fetch", "a/b/../c"], 1, &["path inside the repository"]);
    refuse(folder, &["fetch"], 2, &["<NAME>..."]);
    // A wrong class is found before anything is downloaded, and so is a wrong file.
    refuse(folder, &["sample", "--weights", "hub", "--class", "golden retreiver"], 1, &["did you mean 207"]);
    refuse(folder, &["sample", "--weights", "hub"], 1, &["HF_HUB_OFFLINE"]);

    // What is there is not asked for.
    let repository = folder.join("cache/models--owner--name");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    std::fs::create_dir_all(repository.join("refs")).unwrap();
    std::fs::write(repository.join("refs/main"), commit).unwrap();
    let file = repository.join("snapshots").join(commit).join("weights.bin");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "weights").unwrap();
    assert_eq!(succeed(folder, &["fetch", "owner/name/weights.bin"]), format!("{}\n", file.display()));
}

#[test]
fn the_doctor_says_what_a_bug_report_needs_and_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let output = command(folder.path(), &["doctor", "--json"]).env("HF_TOKEN", "secret").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["version"], ddt::VERSION);
    assert!(report["cores"].as_u64() >= Some(1) && report["hub_offline"] == true, "{report}");
    assert_eq!(report["published"][0], serde_json::json!(["ddt-xl2-256", false, false]));
    assert!(!text.contains("secret"));
    let text = succeed(folder.path(), &["doctor"]);
    assert!(text.contains("ddt-xl2-512: network missing") && text.contains("ddt doctor --json"), "{text}");
}

#[test]
fn completions_and_help_know_the_subcommands() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(succeed(folder.path(), &["completions", shell]).contains("sample"), "{shell}");
    }
    let help = succeed(folder.path(), &["--help"]);
    for name in ["sample", "fetch", "doctor", "completions", "--quiet"] {
        assert!(help.contains(name), "{help}");
    }
    // The full help says more than the list.
    let help = succeed(folder.path(), &["evaluate", "--help"]);
    assert!(help.contains("called fid only if"), "{help}");
    assert_eq!(succeed(folder.path(), &["--version"]), format!("ddt {}\n", ddt::VERSION));
    refuse(folder.path(), &["smaple"], 2, &["sample"]);
    let outcome = ddt(folder.path(), &[]);
    assert_eq!((outcome.status, outcome.stdout.as_str()), (2, ""));
}
