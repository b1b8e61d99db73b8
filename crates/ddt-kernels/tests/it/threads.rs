//! Results are the same bits whatever the number of threads.

use candle_core::{Error, Result, Tensor};
use ddt_kernels::{
    RopeTable, add_silu, attention, gate_residual, layer_norm_modulate, linear, rms_norm_modulate, silu,
    swiglu,
};

use crate::support::{random, run};

/// The bits of the result and of all gradients.
fn bits(
    inputs: &[Tensor],
    f: impl Fn(&[Tensor]) -> Result<Tensor> + Sync,
    threads: usize,
) -> Result<Vec<Vec<u32>>> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(Error::wrap)?;
    let (out, grads) = pool.install(|| run(inputs, &f))?;
    let bits = |x: &Tensor| Ok(x.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect());
    std::iter::once(&out).chain(&grads).map(bits).collect()
}

fn check(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor> + Sync) -> Result<()> {
    let one = bits(inputs, &f, 1)?;
    for threads in [2, 5] {
        assert!(one == bits(inputs, &f, threads)?, "{threads} threads");
    }
    Ok(())
}

#[test]
fn bits_do_not_depend_on_threads() -> Result<()> {
    let x = |seed, l: usize| random(seed, &[3, l, 48]);
    let modulation = |seed, l: usize| random(seed, &[3, l, 96]);
    for l in [1, 150] {
        check(&[x(1, 150)?, random(2, &[48])?, modulation(3, l)?], |x| {
            rms_norm_modulate(&x[0], &x[1], &x[2], 1e-6)
        })?;
        check(&[x(1, 150)?, modulation(3, l)?], |x| layer_norm_modulate(&x[0], &x[1], 1e-6))?;
        check(&[x(1, 150)?, x(2, l)?, x(3, 150)?], |x| gate_residual(&x[0], &x[1], &x[2]))?;
        check(&[x(1, 150)?, x(2, l)?], |x| add_silu(&x[0], &x[1]))?;
    }
    check(&[x(1, 900)?, random(2, &[70, 48])?, random(3, &[70])?], |x| linear(&x[0], &x[1], Some(&x[2])))?;
    check(&[x(1, 900)?], |x| silu(&x[0]))?;
    check(&[x(1, 900)?, x(2, 900)?], |x| swiglu(&x[0], &x[1]))?;
    let angles = random(4, &[150, 4])?;
    let rope = RopeTable::new(angles.cos()?, angles.sin()?)?;
    check(&[x(1, 150)?, random(2, &[8])?, random(3, &[8])?], |x| {
        attention(&x[0], &x[1], &x[2], &rope, 2, 1e-6)
    })
}
