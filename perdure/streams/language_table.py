"""Languages by code: those of FLORES-200 and NTREX-128, and all others that have two letters.

One line a language: its code (ISO 639-1 where there is one, else 639-3); the code that FLORES uses
for it, then others that mean it (macrolanguages, bibliographic and retired codes), "-" where there
is none; its usual script (ISO 15924); its English name. Sources: ISO 639, the lists of files of
FLORES-200 (NLLB team 2022) and NTREX-128 (Federmann et al. 2022). The test compares names and
scripts with those of Unicode's CLDR.
"""

from __future__ import annotations

LANGUAGES = """\
aa aar Latn Afar
ab abk Cyrl Abkhazian
ace - Latn Acehnese
acm - Arab Mesopotamian Arabic
acq - Arab Ta'izzi-Adeni Arabic
ae ave Avst Avestan
aeb - Arab Tunisian Arabic
af afr Latn Afrikaans
ajp - Arab South Levantine Arabic
ak aka Latn Akan
am amh Ethi Amharic
an arg Latn Aragonese
apc - Arab Levantine Arabic
ar arb,ara Arab Arabic
ars - Arab Najdi Arabic
ary - Arab Moroccan Arabic
arz - Arab Egyptian Arabic
as asm Beng Assamese
ast - Latn Asturian
av ava Cyrl Avaric
awa - Deva Awadhi
ay ayr,aym Latn Aymara
az azj,aze Latn Azerbaijani
azb - Arab South Azerbaijani
ba bak Cyrl Bashkir
ban - Latn Balinese
be bel Cyrl Belarusian
bem - Latn Bemba
bg bul Cyrl Bulgarian
bho - Deva Bhojpuri
bi bis Latn Bislama
bjn - Latn Banjar
bm bam Latn Bambara
bn ben Beng Bengali
bo bod,tib Tibt Tibetan
br bre Latn Breton
bs bos Latn Bosnian
bug - Latn Buginese
ca cat Latn Catalan
ce che Cyrl Chechen
ceb - Latn Cebuano
ch cha Latn Chamorro
cjk - Latn Chokwe
ckb - Arab Central Kurdish
co cos Latn Corsican
cr cre Cans Cree
crh - Latn Crimean Tatar
cs ces,cze Latn Czech
cu chu Cyrl Church Slavic
cv chv Cyrl Chuvash
cy cym,wel Latn Welsh
da dan Latn Danish
de deu,ger Latn German
dik din Latn Dinka
dv div Thaa Divehi
dyu - Latn Dyula
dz dzo Tibt Dzongkha
ee ewe Latn Ewe
el ell,gre Grek Greek
en eng Latn English
eo epo Latn Esperanto
es spa Latn Spanish
et est,ekk Latn Estonian
eu eus,baq Latn Basque
fa pes,fas,per Arab Persian
ff ful Latn Fula
fi fin Latn Finnish
fj fij Latn Fijian
fo fao Latn Faroese
fon - Latn Fon
fr fra,fre Latn French
fuc - Latn Pulaar
fur - Latn Friulian
fuv - Latn Nigerian Fulfulde
fy fry Latn Western Frisian
ga gle Latn Irish
gd gla Latn Scottish Gaelic
gl glg Latn Galician
gn grn,gug Latn Guarani
gu guj Gujr Gujarati
gv glv Latn Manx
ha hau Latn Hausa
he heb,iw Hebr Hebrew
hi hin Deva Hindi
hmn - Latn Hmong
hne - Deva Chhattisgarhi
ho hmo Latn Hiri Motu
hr hrv Latn Croatian
ht hat Latn Haitian Creole
hu hun Latn Hungarian
hy hye,arm Armn Armenian
hz her Latn Herero
ia ina Latn Interlingua
id ind,in Latn Indonesian
ie ile Latn Interlingue
ig ibo Latn Igbo
ii iii Yiii Sichuan Yi
ik ipk Latn Inupiaq
ilo - Latn Iloko
io ido Latn Ido
is isl,ice Latn Icelandic
it ita Latn Italian
iu iku Cans Inuktitut
ja jpn Jpan Japanese
jv jav,jw Latn Javanese
ka kat,geo Geor Georgian
kab - Latn Kabyle
kac - Latn Kachin
kam - Latn Kamba
kbp - Latn Kabiye
kea - Latn Kabuverdianu
kg kon Latn Kongo
ki kik Latn Kikuyu
kj kua Latn Kuanyama
kk kaz Cyrl Kazakh
kl kal Latn Kalaallisut
km khm Khmr Khmer
kmb - Latn Kimbundu
kn kan Knda Kannada
ko kor Hang Korean
kr knc,kau Latn Kanuri
ks kas Arab Kashmiri
ku kmr,kur Latn Kurdish
kv kom,kpv Cyrl Komi
kw cor Latn Cornish
ky kir Cyrl Kyrgyz
la lat Latn Latin
lb ltz Latn Luxembourgish
lg lug Latn Ganda
li lim Latn Limburgish
lij - Latn Ligurian
lmo - Latn Lombard
ln lin Latn Lingala
lo lao Laoo Lao
lt lit Latn Lithuanian
ltg - Latn Latgalian
lu lub Latn Luba-Katanga
lua - Latn Luba-Lulua
luo - Latn Luo
lus - Latn Mizo
lv lvs,lav Latn Latvian
mag - Deva Magahi
mai - Deva Maithili
mey - Arab Hassaniya Arabic
mg plt,mlg Latn Malagasy
mh mah Latn Marshallese
mi mri,mao Latn Māori
min - Latn Minangkabau
mk mkd,mac Cyrl Macedonian
ml mal Mlym Malayalam
mn khk,mon Cyrl Mongolian
mni - Beng Manipuri
mos - Latn Mossi
mr mar Deva Marathi
ms zsm,msa,may Latn Malay
mt mlt Latn Maltese
my mya,bur Mymr Burmese
na nau Latn Nauru
nb nob,no,nor Latn Norwegian Bokmål
nd nde Latn North Ndebele
ne npi,nep Deva Nepali
ng ndo Latn Ndonga
nl nld,dut Latn Dutch
nn nno Latn Norwegian Nynorsk
nr nbl Latn South Ndebele
nso - Latn Northern Sotho
nus - Latn Nuer
nv nav Latn Navajo
ny nya Latn Nyanja
oc oci Latn Occitan
oj oji Cans Ojibwa
om gaz,orm Latn Oromo
or ory,ori Orya Odia
os oss Cyrl Ossetic
pa pan Guru Punjabi
pag - Latn Pangasinan
pap - Latn Papiamento
pi pli Sinh Pali
pl pol Latn Polish
prs - Arab Dari
ps pbt,pus,pbu Arab Pashto
pt por Latn Portuguese
qu quy,que Latn Quechua
rm roh Latn Romansh
rn run Latn Rundi
ro ron,rum,mol,mo Latn Romanian
ru rus Cyrl Russian
rw kin Latn Kinyarwanda
sa san Deva Sanskrit
sat - Olck Santali
sc srd Latn Sardinian
scn - Latn Sicilian
sd snd Arab Sindhi
se sme Latn Northern Sami
sg sag Latn Sango
shi - Tfng Tachelhit
shn - Mymr Shan
si sin Sinh Sinhala
sk slk,slo Latn Slovak
sl slv Latn Slovenian
sm smo Latn Samoan
sn sna Latn Shona
so som Latn Somali
sq als,sqi,alb Latn Albanian
sr srp Cyrl Serbian
ss ssw Latn Swati
st sot Latn Southern Sotho
su sun Latn Sundanese
sv swe Latn Swedish
sw swh,swa Latn Swahili
szl - Latn Silesian
ta tam Taml Tamil
taq - Latn Tamasheq
te tel Telu Telugu
tg tgk Cyrl Tajik
th tha Thai Thai
ti tir Ethi Tigrinya
tk tuk Latn Turkmen
tl tgl,fil Latn Tagalog
tn tsn Latn Tswana
to ton Latn Tongan
tpi - Latn Tok Pisin
tr tur Latn Turkish
ts tso Latn Tsonga
tt tat Cyrl Tatar
tum - Latn Tumbuka
tw twi Latn Twi
ty tah Latn Tahitian
tzm - Tfng Central Atlas Tamazight
ug uig Arab Uyghur
uk ukr Cyrl Ukrainian
umb - Latn Umbundu
ur urd Arab Urdu
uz uzn,uzb Latn Uzbek
ve ven Latn Venda
vec - Latn Venetian
vi vie Latn Vietnamese
vo vol Latn Volapük
wa wln Latn Walloon
war - Latn Waray
wo wol Latn Wolof
xh xho Latn Xhosa
yi ydd,yid,ji Hebr Yiddish
yo yor Latn Yoruba
yue - Hant Cantonese
za zha Latn Zhuang
zh zho,cmn,chi Hans Chinese
zu zul Latn Zulu
"""

SCRIPTS = {
    "Arab": "Arabic",
    "Armn": "Armenian",
    "Avst": "Avestan",
    "Beng": "Bengali",
    "Cans": "Canadian Aboriginal",
    "Cyrl": "Cyrillic",
    "Deva": "Devanagari",
    "Ethi": "Ethiopic",
    "Geor": "Georgian",
    "Grek": "Greek",
    "Gujr": "Gujarati",
    "Guru": "Gurmukhi",
    "Hang": "Korean",
    "Hans": "Simplified Han",
    "Hant": "Traditional Han",
    "Hebr": "Hebrew",
    "Jpan": "Japanese",
    "Khmr": "Khmer",
    "Knda": "Kannada",
    "Laoo": "Lao",
    "Latn": "Latin",
    "Mlym": "Malayalam",
    "Mtei": "Meitei Mayek",
    "Mymr": "Myanmar",
    "Nkoo": "N'Ko",
    "Olck": "Ol Chiki",
    "Orya": "Odia",
    "Sinh": "Sinhala",
    "Taml": "Tamil",
    "Telu": "Telugu",
    "Tfng": "Tifinagh",
    "Thaa": "Thaana",
    "Thai": "Thai",
    "Tibt": "Tibetan",
    "Yiii": "Yi",
}
"""Scripts that a code may name (ISO 15924), with their English names."""

REGIONS = {
    "AR": "Argentina",
    "AT": "Austria",
    "AU": "Australia",
    "BE": "Belgium",
    "BR": "Brazil",
    "CA": "Canada",
    "CH": "Switzerland",
    "CN": "China",
    "DE": "Germany",
    "ES": "Spain",
    "FR": "France",
    "GB": "United Kingdom",
    "HK": "Hong Kong",
    "IN": "India",
    "IT": "Italy",
    "MO": "Macao",
    "MX": "Mexico",
    "NL": "Netherlands",
    "PT": "Portugal",
    "SG": "Singapore",
    "TW": "Taiwan",
    "US": "United States",
}
"""Regions that parallel corpora tell apart; any other is shown by its code."""
