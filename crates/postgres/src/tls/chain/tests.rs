use super::*;
use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

struct Made {
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

fn named(name: &str, change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut parameters = CertificateParams::new(Vec::new()).expect("no names");
    parameters
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    change(&mut parameters);
    parameters
}

fn make(parameters: CertificateParams, by: Option<&Made>) -> Made {
    let key = KeyPair::generate().expect("random bytes");
    let certificate = match by {
        Some(by) => parameters.signed_by(&key, &by.issuer),
        None => parameters.self_signed(&key),
    }
    .expect("complete");
    Made {
        der: certificate.der().clone(),
        issuer: Issuer::new(parameters, key),
    }
}

fn authority(parameters: &mut CertificateParams) {
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
}

fn verify(roots: &[&Made], leaf: &Made, others: &[&Made]) -> Result<(), Rejection> {
    let roots: Vec<_> = roots.iter().map(|made| made.der.clone()).collect();
    let others: Vec<_> = others.iter().map(|made| made.der.clone()).collect();
    judge(&roots).verify(&leaf.der, &others)
}

fn judge<'a>(roots: &'a [CertificateDer<'static>]) -> Judge<'a> {
    Judge {
        roots,
        algorithms: rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .all,
        // 2026-01-01, within what rcgen gives by default.
        now: 1_767_225_600,
    }
}

#[test]
fn only_authorities_can_stand_between_a_server_and_a_root() {
    let root = make(named("root", authority), None);
    let middle = make(named("middle", authority), Some(&root));
    let plain = make(named("plain", |_| {}), Some(&root));
    let no_signing = make(
        named("no signing", |parameters| {
            authority(parameters);
            parameters.key_usages = vec![KeyUsagePurpose::CrlSign];
        }),
        Some(&root),
    );
    let short = make(
        named("short", |parameters| {
            parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        }),
        Some(&root),
    );
    let below_short = make(named("below", authority), Some(&short));
    let server = |by: &Made| make(named("server", |_| {}), Some(by));

    assert_eq!(verify(&[&root], &server(&root), &[]), Ok(()));
    assert_eq!(verify(&[&root], &server(&middle), &[&middle]), Ok(()));
    assert_eq!(verify(&[&root], &server(&short), &[&short]), Ok(()));
    assert_eq!(
        verify(&[&root], &server(&middle), &[]),
        Err(Rejection::UnknownAuthority { roots: None })
    );
    for forger in [&plain, &no_signing] {
        assert!(matches!(
            verify(&[&root], &server(forger), &[forger]),
            Err(Rejection::Unusable(_))
        ));
    }
    assert!(matches!(
        verify(&[&root], &server(&below_short), &[&below_short, &short]),
        Err(Rejection::Unusable(_))
    ));
    // The same name with another key.
    let impostor = make(named("root", authority), None);
    assert_eq!(
        verify(&[&root], &server(&impostor), &[&impostor]),
        Err(Rejection::WrongSignature)
    );
}

#[test]
fn dates_and_purposes_count() {
    let root = make(named("root", authority), None);
    let with = |change: fn(&mut CertificateParams)| make(named("server", change), Some(&root));
    let expired = with(|parameters| parameters.not_after = rcgen::date_time_ymd(2025, 1, 1));
    assert!(matches!(
        verify(&[&root], &expired, &[]),
        Err(Rejection::Expired(_))
    ));
    let future = with(|parameters| parameters.not_before = rcgen::date_time_ymd(2030, 1, 1));
    assert!(matches!(
        verify(&[&root], &future, &[]),
        Err(Rejection::NotYetValid(_))
    ));
    let client =
        with(|parameters| parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    assert_eq!(verify(&[&root], &client, &[]), Err(Rejection::WrongPurpose));
    let signing_only = make(
        named("root", |parameters| {
            authority(parameters);
            parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        }),
        None,
    );
    // As OpenSSL: such an authority may not serve by its own certificate.
    assert_eq!(
        verify(&[&signing_only], &signing_only, &[]),
        Err(Rejection::WrongPurpose)
    );
}

#[test]
fn certificates_that_sign_each_other_end_the_search() {
    let one = make(named("one", authority), None);
    let two = make(named("two", authority), Some(&one));
    let one_by_two = make(named("one", authority), Some(&two));
    let server = make(named("server", |_| {}), Some(&one));
    assert!(verify(&[], &server, &[&one, &two, &one_by_two]).is_err());
}

#[test]
fn a_certificate_with_any_bit_flipped_is_refused() {
    let root = make(named("root", authority), None);
    assert_eq!(verify(&[&root], &root, &[]), Ok(()));
    let roots = [root.der.clone()];
    for index in 0..root.der.len() {
        let mut bytes = root.der.to_vec();
        bytes[index] ^= 1;
        assert!(judge(&roots).verify(&bytes, &[]).is_err(), "byte {index}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(judge(&[]).verify(&bytes, &[]).is_err());
        let _ = split_key(&bytes);
        let _ = signature_algorithm(&bytes);
        let _ = super::super::end_point::hash(&bytes);
    }
}
