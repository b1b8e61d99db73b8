//! Usual settings, names and the images of a request.

use super::*;

#[test]
fn grids_are_usual_for_the_family() {
    let dit_dh = NetworkConfig::preset("ditdh-xl-256").unwrap();
    let shift = 48f64.sqrt();
    let grid = usual_grid(&dit_dh, USUAL_STEPS);
    assert_eq!((grid.num_steps(), grid.last_step(), grid.timeshift()), (50, 0.02, shift));
    let config = PipelineConfig { network: Some(dit_dh), ..PipelineConfig::new("any") };
    let with = |config: &PipelineConfig, fidelity| config.clone().with_fidelity(fidelity).grid.unwrap();
    assert_eq!(with(&config, Fidelity::Exact), TimeGrid::until(49, 0.999, shift).unwrap());
    assert_eq!(with(&config, Fidelity::High), TimeGrid::new(250, None, shift).unwrap());
    let ddt = PipelineConfig { network: Some(NetworkConfig::preset("ddt-b2").unwrap()), ..config };
    for config in [ddt, PipelineConfig::new("any")] {
        assert_eq!(with(&config, Fidelity::Exact), TimeGrid::new(250, Some(0.04), 1.0).unwrap());
    }
}

#[test]
fn omitted_settings_are_the_usual_ones_and_unknown_ones_are_refused() {
    let parse = |json: &str| serde_json::from_str::<PipelineConfig>(json).map_err(|it| it.to_string());
    let config = parse(r#"{"weights": {"from": "demo"}}"#).unwrap();
    assert_eq!(config, PipelineConfig::new("demo"));
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(parse(&json).unwrap(), config);
    for (field, expected) in [
        (r#""steps": 3"#, "unknown field"),
        (r#""solver": "heun3""#, "adams2"),
        (r#""device": "gpu""#, "expected cpu"),
        (r#""sharing": "uniform:0""#, "uniform:R"),
        (r#""guidance": {"scale": 2.0, "interval": [1.0, 0.3]}"#, "low < high"),
    ] {
        let message = parse(&format!(r#"{{"weights": {{"from": "demo"}}, {field}}}"#)).unwrap_err();
        assert!(message.contains(expected), "{field}: {message}");
    }
}

#[test]
fn names_are_those_of_the_libraries() {
    for name in ddt_flow::SOLVER_NAMES {
        let parsed: SolverName = name.parse().unwrap();
        assert_eq!(solver_by_name(name).unwrap().name(), parsed.as_str());
    }
    assert_eq!("dopri5:1e-6".parse::<SolverName>().unwrap().as_str(), "dopri5:1e-6");
    let places =
        ["cpu", "cuda", "cuda:0", "cuda:3", "cuda:", "cuda:x", "cuda3", "gpu"].map(|it| it.parse().ok());
    let gpu = |number| HAS_GPUS.then_some(Place::Cuda(number));
    assert_eq!(places, [Some(Place::Cpu), gpu(None), gpu(Some(0)), gpu(Some(3)), None, None, None, None]);
    assert_eq!(
        [Place::Cpu, Place::Cuda(None), Place::Cuda(Some(0)), Place::Cuda(Some(2))].map(|it| it.to_string()),
        ["cpu", "cuda", "cuda:0", "cuda:2"]
    );
}

#[test]
fn images_are_counted_class_by_class() {
    let samples: Vec<u64> = Request::new([3, 8], 2).images().iter().map(|it| it.sample()).collect();
    assert_eq!(samples, [3_000_000, 3_000_001, 8_000_000, 8_000_001]);
}

#[test]
fn images_are_spread_over_the_classes_and_never_the_same() {
    let labels = |count, num_classes| -> Vec<u32> {
        Image::spread(count, num_classes, 0).iter().map(|it| it.label).collect()
    };
    assert_eq!(labels(4, 1000), [0, 250, 500, 750]);
    assert_eq!(labels(8, 10), [0, 1, 2, 3, 5, 6, 7, 8]);
    assert_eq!(labels(5, 3), [0, 1, 2, 0, 1]);
    for (count, num_classes) in [(1, 1), (4, 1000), (8, 10), (10, 10), (25, 10)] {
        let rounds = (count as usize).div_ceil(num_classes) as u32;
        let mut samples: Vec<u64> =
            Image::spread(count, num_classes, 0).iter().map(|it| it.sample()).collect();
        samples.extend(Image::spread(count, num_classes, rounds).iter().map(|it| it.sample()));
        samples.sort_unstable();
        samples.dedup();
        assert_eq!(samples.len(), 2 * count as usize);
    }
}
