//! `kill -9` of the service, and of the command that hands a bundle over, in every state: whatever is on disk then is a state from
//! which the next start goes on, and nothing that must not serve ever does.

use crate::kit::{SHORT, Site, count};
use crate::lives::{end_well, lead};

const SEED: u64 = 20_261_127;

#[test]
fn whatever_is_on_disk_goes_on() {
    let kills = count("SCANSIDE_KILLS", 7);
    let mut site = Site::start(SHORT);
    let mut lives = lead(&mut site, kills, SEED, &mut |site, child, n| {
        site.kill();
        // The command dies with it every other time; else it sees that nobody moves the bundle.
        if n % 2 == 0 {
            let _ = child.kill();
        }
        site.run();
    });
    let said = end_well(&site, &mut lives);
    eprintln!("{kills} kills (seed {SEED}); the newest bundle was then: {said}");
}
