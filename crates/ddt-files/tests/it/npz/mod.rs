//! Reading what others write, refusing what nobody should, and archives that are killed on the way.

mod archive;
mod hostile;
mod killed;
mod reading;
mod stub;
mod zips;
