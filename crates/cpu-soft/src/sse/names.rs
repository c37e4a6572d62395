//! The names of operations that exist with VEX prefix and without.

use iced_x86::Mnemonic as M;

macro_rules! names {
    ($m:expr; $($with:ident $without:ident,)*) => {
        match $m {
            $(M::$with => M::$without,)*
            _ => return None,
        }
    };
}

/// The operation that an instruction with VEX prefix has in common with one without.
pub(super) fn without_vex(m: M) -> Option<M> {
    Some(names!(m;
        Vaddpd Addpd, Vaddps Addps, Vaddsd Addsd, Vaddss Addss, Vaddsubpd Addsubpd,
        Vaddsubps Addsubps, Vaesdec Aesdec, Vaesdeclast Aesdeclast, Vaesenc Aesenc,
        Vaesenclast Aesenclast, Vaesimc Aesimc, Vaeskeygenassist Aeskeygenassist, Vandnpd Andnpd,
        Vandnps Andnps, Vandpd Andpd, Vandps Andps, Vblendpd Blendpd, Vblendps Blendps,
        Vblendvpd Blendvpd, Vblendvps Blendvps, Vcmppd Cmppd, Vcmpps Cmpps, Vcmpsd Cmpsd,
        Vcmpss Cmpss, Vcomisd Comisd, Vcomiss Comiss, Vcvtdq2pd Cvtdq2pd, Vcvtdq2ps Cvtdq2ps,
        Vcvtpd2dq Cvtpd2dq, Vcvtpd2ps Cvtpd2ps, Vcvtps2dq Cvtps2dq, Vcvtps2pd Cvtps2pd,
        Vcvtsd2si Cvtsd2si, Vcvtsd2ss Cvtsd2ss, Vcvtsi2sd Cvtsi2sd, Vcvtsi2ss Cvtsi2ss,
        Vcvtss2sd Cvtss2sd, Vcvtss2si Cvtss2si, Vcvttpd2dq Cvttpd2dq, Vcvttps2dq Cvttps2dq,
        Vcvttsd2si Cvttsd2si, Vcvttss2si Cvttss2si, Vdivpd Divpd, Vdivps Divps, Vdivsd Divsd,
        Vdivss Divss, Vdppd Dppd, Vdpps Dpps, Vextractps Extractps,

        Vhaddpd Haddpd, Vhaddps Haddps, Vhsubpd Hsubpd, Vhsubps Hsubps, Vinsertps Insertps,
        Vlddqu Lddqu, Vmaskmovdqu Maskmovdqu, Vmaxpd Maxpd, Vmaxps Maxps,
        Vmaxsd Maxsd, Vmaxss Maxss, Vminpd Minpd, Vminps Minps, Vminsd Minsd, Vminss Minss,
        Vmovapd Movapd, Vmovaps Movaps, Vmovd Movd, Vmovddup Movddup, Vmovdqa Movdqa,
        Vmovdqu Movdqu, Vmovhlps Movhlps, Vmovhpd Movhpd, Vmovhps Movhps, Vmovlhps Movlhps,
        Vmovlpd Movlpd, Vmovlps Movlps, Vmovmskpd Movmskpd, Vmovmskps Movmskps, Vmovntdq Movntdq,
        Vmovntdqa Movntdqa, Vmovntpd Movntpd, Vmovntps Movntps, Vmovq Movq, Vmovsd Movsd,
        Vmovshdup Movshdup, Vmovsldup Movsldup, Vmovss Movss, Vmovupd Movupd, Vmovups Movups,
        Vmpsadbw Mpsadbw, Vmulpd Mulpd, Vmulps Mulps, Vmulsd Mulsd, Vmulss Mulss, Vorpd Orpd,
        Vorps Orps, Vpabsb Pabsb, Vpabsd Pabsd, Vpabsw Pabsw, Vpackssdw Packssdw,
        Vpacksswb Packsswb, Vpackusdw Packusdw, Vpackuswb Packuswb, Vpaddb Paddb, Vpaddd Paddd,
        Vpaddq Paddq, Vpaddsb Paddsb, Vpaddsw Paddsw, Vpaddusb Paddusb, Vpaddusw Paddusw,
        Vpaddw Paddw, Vpalignr Palignr, Vpand Pand, Vpandn Pandn, Vpavgb Pavgb, Vpavgw Pavgw,
        Vpblendvb Pblendvb, Vpblendw Pblendw, Vpclmulqdq Pclmulqdq, Vpcmpeqb Pcmpeqb,
        Vpcmpeqd Pcmpeqd, Vpcmpeqq Pcmpeqq, Vpcmpeqw Pcmpeqw, Vpcmpestri Pcmpestri,
        Vpcmpestri64 Pcmpestri64, Vpcmpestrm Pcmpestrm, Vpcmpestrm64 Pcmpestrm64, Vpcmpgtb Pcmpgtb,
        Vpcmpgtd Pcmpgtd, Vpcmpgtq Pcmpgtq, Vpcmpgtw Pcmpgtw, Vpcmpistri Pcmpistri,
        Vpcmpistrm Pcmpistrm, Vpextrb Pextrb, Vpextrd Pextrd, Vpextrq Pextrq, Vpextrw Pextrw,
        Vphaddd Phaddd, Vphaddsw Phaddsw, Vphaddw Phaddw, Vphminposuw Phminposuw, Vphsubd Phsubd,
        Vphsubsw Phsubsw, Vphsubw Phsubw, Vpinsrb Pinsrb, Vpinsrd Pinsrd, Vpinsrq Pinsrq,
        Vpinsrw Pinsrw, Vpmaddubsw Pmaddubsw, Vpmaddwd Pmaddwd, Vpmaxsb Pmaxsb, Vpmaxsd Pmaxsd,
        Vpmaxsw Pmaxsw, Vpmaxub Pmaxub, Vpmaxud Pmaxud, Vpmaxuw Pmaxuw, Vpminsb Pminsb,
        Vpminsd Pminsd, Vpminsw Pminsw, Vpminub Pminub, Vpminud Pminud, Vpminuw Pminuw,
        Vpmovmskb Pmovmskb, Vpmovsxbd Pmovsxbd, Vpmovsxbq Pmovsxbq, Vpmovsxbw Pmovsxbw,
        Vpmovsxdq Pmovsxdq, Vpmovsxwd Pmovsxwd, Vpmovsxwq Pmovsxwq, Vpmovzxbd Pmovzxbd,
        Vpmovzxbq Pmovzxbq, Vpmovzxbw Pmovzxbw, Vpmovzxdq Pmovzxdq, Vpmovzxwd Pmovzxwd,
        Vpmovzxwq Pmovzxwq, Vpmuldq Pmuldq, Vpmulhrsw Pmulhrsw, Vpmulhuw Pmulhuw, Vpmulhw Pmulhw,
        Vpmulld Pmulld, Vpmullw Pmullw, Vpmuludq Pmuludq, Vpor Por, Vpsadbw Psadbw, Vpshufb Pshufb,
        Vpshufd Pshufd, Vpshufhw Pshufhw, Vpshuflw Pshuflw, Vpsignb Psignb, Vpsignd Psignd,
        Vpsignw Psignw, Vpslld Pslld, Vpslldq Pslldq, Vpsllq Psllq, Vpsllw Psllw, Vpsrad Psrad,
        Vpsraw Psraw, Vpsrld Psrld, Vpsrldq Psrldq, Vpsrlq Psrlq, Vpsrlw Psrlw, Vpsubb Psubb,
        Vpsubd Psubd, Vpsubq Psubq, Vpsubsb Psubsb, Vpsubsw Psubsw, Vpsubusb Psubusb,
        Vpsubusw Psubusw, Vpsubw Psubw, Vptest Ptest, Vpunpckhbw Punpckhbw, Vpunpckhdq Punpckhdq,
        Vpunpckhqdq Punpckhqdq, Vpunpckhwd Punpckhwd, Vpunpcklbw Punpcklbw, Vpunpckldq Punpckldq,
        Vpunpcklqdq Punpcklqdq, Vpunpcklwd Punpcklwd, Vpxor Pxor, Vrcpps Rcpps, Vrcpss Rcpss,
        Vroundpd Roundpd, Vroundps Roundps, Vroundsd Roundsd, Vroundss Roundss, Vrsqrtps Rsqrtps,
        Vrsqrtss Rsqrtss, Vshufpd Shufpd, Vshufps Shufps, Vsqrtpd Sqrtpd, Vsqrtps Sqrtps,
        Vsqrtsd Sqrtsd, Vsqrtss Sqrtss, Vsubpd Subpd, Vsubps Subps, Vsubsd Subsd,
        Vsubss Subss, Vucomisd Ucomisd, Vucomiss Ucomiss, Vunpckhpd Unpckhpd, Vunpckhps Unpckhps,
        Vunpcklpd Unpcklpd, Vunpcklps Unpcklps, Vxorpd Xorpd, Vxorps Xorps,

    ))
}
