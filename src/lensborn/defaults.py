"""Every default of lensborn, in one place. A bundle records the values it was made with; those win."""

# --- photograph ---------------------------------------------------------------------------------------
MAX_PIXELS = 120_000_000  # more are refused before decoding; 100-megapixel cameras pass
MAX_FILE_BYTES = 512 * 2**20  # a larger file is refused unread

# --- face ---------------------------------------------------------------------------------------------
CROP_SCALE = 1.3  # side of the square crop over the longer side of the face box
MIN_CONFIDENCE = 0.7  # of the face finder, in 0..1; chosen in docs/faces.md
MIN_FACE_PX = 16  # smaller boxes are not reported as faces
MAX_FACES = 1000  # of a picture; a mosaic may have 40,000, whose crops, held at once, would take gigabytes
MIN_CROP_PX = 80  # crops smaller than this are too small to say: verdict "unsure"

# --- feature ------------------------------------------------------------------------------------------
INPUT_SIZE = 224  # side of the encoder's input, in pixels
FEATURE_DIM = 768  # Zou et al. 2025, section 3
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # per channel, of RGB in 0..1
IMAGENET_STD = (0.229, 0.224, 0.225)

# --- density and calibration --------------------------------------------------------------------------
N_COMPONENTS = 8  # Zou et al. 2025, fig. 4
ALPHA = 0.05  # promised share of photographs flagged

# --- splits: by hash of the source, never by crop (see datasets/corpus.py) ------------------------------
SPLITS = (("train", 0.60), ("validate", 0.15), ("calibrate", 0.15), ("test", 0.10))

SEED = 0
