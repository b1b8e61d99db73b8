//! Seeds: the small files of the test suite in the form of inputs, and what targets build their files from.

use std::{fs, path::Path};

use ddt_data::Limits;
use ddt_picture::{Rgb8, encode_png};
use ddt_sharing::{
    InnerProducts, MadeFor, Objective, PlanError, PlanFile, Similarity, SimilarityFile, optimal_plan,
};
use flate2::{Compression, write::ZlibEncoder};

use crate::archive;
use crate::builders::{Pickle, array, floats, legacy_file, lightning, npy};
use crate::parts::{Parts, part};

/// Limits of images small enough to decode thousands in a second.
pub const LIMITS: Limits = Limits { max_bytes: 1 << 20, max_pixels: 1 << 16 };

/// The first bytes of a file in PyTorch's older format.
pub const MAGIC: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// A file of PyTorch's older format with this pickle, and one storage `0` of 16 floats.
pub fn legacy(pickle: &[u8]) -> Vec<u8> {
    legacy_file(pickle, &[("0", 16, &[7; 64])])
}

/// A safetensors file of single bytes.
pub fn safetensors(names: &[&str]) -> Vec<u8> {
    let entry = |(at, name): (usize, &&str)| {
        format!(r#""{name}":{{"dtype":"U8","shape":[1],"data_offsets":[{at},{}]}}"#, at + 1)
    };
    let header = format!("{{{}}}", names.iter().enumerate().map(entry).collect::<Vec<_>>().join(","));
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![7; names.len()]].concat()
}

/// A safetensors file without tensors, with the description of a network.
pub fn described(config: &[u8], classes: &[u8], latents: &[u8]) -> Vec<u8> {
    let fields = [("ddt.config", config), ("ddt.classes", classes), ("ddt.latents", latents)];
    let stated = fields.iter().filter(|it| !it.1.is_empty());
    let text: serde_json::Map<String, serde_json::Value> =
        stated.map(|(name, text)| ((*name).to_owned(), String::from_utf8_lossy(text).into())).collect();
    let header = serde_json::json!({ "__metadata__": text }).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()
}

/// A PNG of parts that are its chunks: a type of four bytes and the content. The type `raw!` is compressed to `IDAT`.
pub fn chunks(input: &[u8]) -> Vec<u8> {
    let (mut file, mut parts) = (SIGNATURE.to_vec(), Parts(input));
    while !parts.is_empty() {
        let mut chunk = Parts(parts.part());
        let (kind, content) = (chunk.take(4), chunk.0);
        let chunk = match kind {
            b"raw!" => [b"IDAT", zlib(content).as_slice()].concat(),
            _ => [kind, content].concat(),
        };
        file.extend((chunk.len().saturating_sub(4) as u32).to_be_bytes());
        file.extend(&chunk);
        file.extend(crc32fast::hash(&chunk).to_be_bytes());
    }
    file
}

fn zlib(content: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::none());
    // A vector takes everything.
    std::io::Write::write_all(&mut encoder, content).ok();
    encoder.finish().unwrap_or_default()
}

/// A PNG as the program writes it, or nothing for text that a PNG cannot hold.
pub fn picture(text: &[(&str, &str)]) -> Vec<u8> {
    let picture = Rgb8::filled(2, 2, [1, 2, 3]);
    picture.and_then(|it| encode_png(&it, text)).unwrap_or_default()
}

/// The chunks of a PNG as parts.
fn in_parts(png: &[u8]) -> Vec<u8> {
    let (mut parts, mut rest) = (Vec::new(), png.get(8..).unwrap_or_default());
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let len = 4 + u32::from_be_bytes(*length) as usize;
        let Some((chunk, after)) = after.split_at_checked(len) else { break };
        parts.extend(part(chunk));
        rest = after.get(4..).unwrap_or_default();
    }
    parts
}

/// A PNG whose pixels are not compressed.
fn raw_png(width: u8, height: u8, depth: u8, colour: u8, extra: &[&[u8]]) -> Vec<u8> {
    let header = [b"IHDR", &[0, 0, 0, width, 0, 0, 0, height, depth, colour, 0, 0, 0][..]].concat();
    let channels = [1, 0, 3, 1, 2, 0, 4].get(usize::from(colour)).copied().unwrap_or(1);
    let row = (usize::from(width) * channels * usize::from(depth)).div_ceil(8);
    let pixels: Vec<u8> = (0..height).flat_map(|filter| [vec![filter % 5], vec![17; row]].concat()).collect();
    let pixels = [b"raw!", pixels.as_slice()].concat();
    let chunks = [vec![header.as_slice()], extra.to_vec(), vec![&pixels, b"IEND"]].concat();
    chunks.into_iter().flat_map(part).collect()
}

/// Seeds of a target; `None` for a name that is none.
///
/// # Errors
/// A file of the test suite that is not there.
pub fn seeds(target: &str) -> std::io::Result<Option<Vec<Vec<u8>>>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let file = |path: &str| fs::read(root.join(path));
    let files = |paths: &[&str]| paths.iter().map(|it| file(it)).collect::<std::io::Result<Vec<_>>>();
    let golden = |names: &[&str]| {
        names
            .iter()
            .map(|it| file(&format!("crates/ddt-data/tests/golden/{it}")))
            .collect::<std::io::Result<Vec<_>>>()
    };
    let after = |mark: usize, seeds: Vec<Vec<u8>>| {
        seeds.into_iter().map(|it| it[mark.min(it.len())..].to_vec()).collect()
    };
    let kind = |kind: u8, seeds: Vec<Vec<u8>>| seeds.into_iter().map(move |it| [vec![kind], it].concat());
    let pipeline = || -> std::io::Result<String> {
        let run: serde_json::Value =
            serde_json::from_slice(&file("benches/runs/2026-11-30-sharing/50-steps.json")?)?;
        Ok(run["pipeline"].to_string())
    };
    let small = lightning(|it| {
        let it = it.str("a").tensor("FloatStorage", "0", 6, (0, &[2, 3], &[3, 1]));
        it.str("b").tensor("BFloat16Storage", "1", 2, (1, &[], &[]))
    });
    let storages = [floats([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), vec![0x80, 0x3f, 0, 0x40]];
    let torch = || {
        files(&[
            "crates/ddt-files/tests/data/protocol2.ckpt",
            "crates/ddt-files/tests/data/protocol5.ckpt",
            "fixtures/torch_zip.pt",
            "fixtures/torch_nested.pt",
            "fixtures/rae_stat.pt",
        ])
    };
    let header = br#"{"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"BOOL","shape":[],"data_offsets":[8,9]}}"#;
    Ok(Some(match target {
        "safetensors" => {
            let whole =
                files(&["fixtures/torch_zip_expect.safetensors", "fixtures/rae_stat_expect.safetensors"])?;
            let built = [vec![1], part(header), vec![7; 9]].concat();
            kind(0, whole).chain([built]).collect()
        }
        "index" => vec![br#"{"metadata":{"total_size":3},"weight_map":{"x":"a","y":"a","z":"b"}}"#.to_vec()],
        "torch_zip" => {
            let entries: [(&str, &[u8], bool); 4] = [
                ("a/data.pkl", &small, true),
                ("a/byteorder", b"little", false),
                ("a/data/0", &storages[0], false),
                ("a/data/1", &storages[1], true),
            ];
            kind(0, torch()?).chain([archive::input(&entries)]).collect()
        }
        "torch_legacy" => {
            let built = legacy_file(&small, &[("0", 6, &storages[0]), ("1", 2, &storages[1])]);
            after(MAGIC.len(), [files(&["fixtures/torch_legacy.pt"])?, vec![built]].concat())
        }
        "pickle" => {
            let nested = Pickle::new()
                .op(b"}(")
                .str("ema")
                .op(b"}(")
                .str("x")
                .tensor("FloatStorage", "0", 16, (0, &[2], &[1]))
                .op(b"uu")
                .end();
            // {"w": tensor}, of pieces.
            kind(0, vec![small, nested]).chain([vec![1, 0, 36, 53, 7]]).collect()
        }
        "npz" => {
            let pixels: Vec<u8> = (0..48).collect();
            let images = array("|u1", "(2, 2, 4, 3)", &pixels);
            let mu = array("<f8", "(3,)", &[1; 24]);
            let turned = npy(2, "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }\n", &[3; 24]);
            let built = archive::input(&[
                ("arr_0.npy", &images, true),
                ("mu.npy", &mu, false),
                ("sigma.npy", &turned, true),
            ]);
            kind(0, vec![images, turned]).chain([built]).collect()
        }
        "jpeg" => after(2, golden(&["cmyk.jpg", "grey.jpg", "progressive.jpg", "rotated.jpg"])?),
        "png" => {
            let whole = golden(&["alpha.png", "grey.png", "palette.png", "rotated.png"])?;
            let palette = [b"PLTE", &[9; 12][..]].concat();
            let raw = [
                raw_png(3, 6, 8, 2, &[]),
                raw_png(5, 5, 16, 6, &[]),
                raw_png(9, 3, 2, 3, &[&palette, b"tRNS\x01"]),
            ];
            whole.iter().map(|it| in_parts(it)).chain(raw).collect()
        }
        "webp" => after(12, golden(&["alpha.webp", "animated.webp", "lossy.webp"])?),
        "bmp" => after(2, golden(&["colour.bmp", "palette.bmp"])?),
        "plans" => plans().map_err(std::io::Error::other)?,
        "settings" => {
            let toml =
                files(&["configs/cifar10.toml", "configs/ddt-xl2-256.toml", "configs/ditdh-xl-256.toml"])?;
            let config = pipeline()?;
            let network: serde_json::Value = serde_json::from_str(&config)?;
            let description =
                [part(network["network"].to_string().as_bytes()), part(br#"["a","b"]"#), part(b"{}")]
                    .concat();
            let classes = b"0\tn01440764\ttench, Tinca tinca\n1\tn01443537\tgoldfish\n".to_vec();
            let rest = [vec![1], config.into_bytes()].concat();
            let rest = [
                rest,
                [b"\x02", REPORT.as_bytes()].concat(),
                [vec![3], classes].concat(),
                [vec![4], description].concat(),
            ];
            kind(0, toml).chain(rest).collect()
        }
        "record" => {
            let record = format!(
                r#"{{"version":"0.1.0","pipeline":{},"request":{{"classes":[7],"images_per_class":2,"seed":5,"batch":4}},"class_names":["horse"]}}"#,
                pipeline()?
            );
            let whole = in_parts(&picture(&[("ddt:record", &record), ("Title", "café")]));
            vec![[b"\x01", record.as_bytes()].concat(), [vec![0], whole].concat()]
        }
        "http" => REQUESTS.iter().map(|it| it.as_bytes().to_vec()).collect(),
        _ => return Ok(None),
    }))
}

/// A measurement of four steps and a plan made from it, as JSON.
fn plans() -> Result<Vec<Vec<u8>>, PlanError> {
    let values: Vec<f64> = (0..16).map(|it: usize| 1.0 - (it / 4).abs_diff(it % 4) as f64 / 8.0).collect();
    let grid = serde_json::json!({ "num_steps": 4, "last_step": 0.04, "timeshift": 1.0 });
    let measured = SimilarityFile {
        made_for: MadeFor::new("m").with("grid", &grid)?,
        seed: 1,
        images: 8,
        similarity: Similarity::from_matrix(values.clone(), 4)?,
        inner_products: Some(InnerProducts::from_matrix(values, 4)?),
    };
    let best = optimal_plan(&measured.similarity, 2)?;
    let plan = PlanFile::new(&measured, Objective::Budget { num_recompute: 2 }, best);
    Ok(vec![plan.to_json()?.into_bytes(), measured.to_json()?.into_bytes()])
}

const REPORT: &str = r#"{"version":1,"metrics":[{"name":"fid","value":2.5}],"verdict":null,"warnings":[{"kind":"note","text":"few"}],"protocol":{"sample":{"seed":1},"evaluation":{"samples":{"name":"a","sha256":"0","num_images":9,"image_size":[2,2],"classes":{"num_classes":1,"fewest":9,"most":9},"precomputed_statistics":false},"references":{"name":"b","sha256":"1","num_images":9,"image_size":null,"classes":null,"precomputed_statistics":true},"evaluator":{"name":"inception","weights_sha256":"2","feature_size":8},"neighbourhood":3,"split_size":5}}}"#;

const REQUESTS: [&str; 6] = [
    "\x00GET / HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "\x00GET /api/classes HTTP/1.1\r\nhost: 127.0.0.1:8188\r\norigin: http://127.0.0.1:8188\r\nsec-fetch-site: same-origin\r\ncookie: ddt-token=a\r\nauthorization: Bearer b\r\n\r\n",
    "\x00GET /api/presets HTTP/1.1\r\nhost: studio.lab\r\n\r\nGET /api/jobs/x/runs/0/image.png HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "\x00POST /api/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nddt-client: a-1\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "\x01{\"generate\": {\"request\": {\"classes\": [7], \"images_per_class\": 2, \"seed\": 5}, \"settings\": [{\"solver\": \"adams2\", \"sharing\": \"ratio:0.75,order:2\", \"grid\": {\"num_steps\": 6, \"last_step\": 0.04, \"timeshift\": 1.0}, \"guidance\": {\"scale\": 2.0, \"interval\": [0.3, 1.0]}}]}}",
    "\x01{\"measure\": {\"images\": 2, \"order\": 0, \"settings\": {}}}",
];
